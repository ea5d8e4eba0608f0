"""Cameras that need a process or a server of their own, watched through the whole daemon and asked about."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capture.lab import certificate, needs_rtsp, rtsp_server

pytestmark = pytest.mark.beside
ROOT = Path(__file__).parents[2]


def seen_and_asked(folder: Path, source: str, *keys: str, **environment: str) -> str:
    """What the daemon, started as users start it, says of a source after it was seen and asked about; its log as well."""
    config = folder / "one.yaml"
    lines = "".join(f", {key}" for key in keys)
    config.write_text(
        f"model: {{threads: 1}}\nstreams: [{{name: one, source: {source!r}{lines}}}]\nserver: {{port: 0}}\n"
        "limits: {streams: 1, answers: 1}\n"
    )
    log = folder / "log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "streamer.cli.main", "run", str(config), "--ask", "What do you see?"]
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "XDG_STATE_HOME": str(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        )
    try:
        assert running.stdout is not None
        url = answer = ""
        for line in running.stdout:
            url = url or "".join(re.findall(r"ready at (http://\S+)", line))
            if answer := "".join(re.findall(r"^> (.+)", line)):
                break
        assert answer, log.read_text()
        status = [sys.executable, "-m", "streamer.cli.main", "status", "--url", url]
        told = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=200, check=True).stdout
        return told + log.read_text()
    finally:
        running.terminate()
        running.wait(60)


@needs_rtsp
def test_rtsps_with_a_user(tmp_path: Path) -> None:
    with rtsp_server("ada:lovelace", certificate(tmp_path)) as server:
        told = seen_and_asked(tmp_path, server.url("/live", "rtsps", "ada:lovelace"))
    assert re.search(rf"^one +live .*rtsps://\*\*\*@127.0.0.1:{server.port}/live$", told, re.MULTILINE), told
    assert "lovelace" not in told


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: sh tests/system-packages.sh")
def test_a_camera_of_this_machine(tmp_path: Path) -> None:
    """FFmpeg's own code for cameras; the kernel's part is played (see tests/capture/camera.c)."""
    library, device = tmp_path / "camera.so", tmp_path / "video0"
    shim = ROOT / "tests" / "capture" / "camera.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, shim, "-ldl"], check=True)
    device.touch()
    wanted = ("camera_size: [320, 180]", "camera_rate: 20", "pixel_format: yuyv422")
    told = seen_and_asked(tmp_path, f"v4l2://{device}", *wanted, LD_PRELOAD=str(library), CAMERA=str(device))
    assert re.search(rf"^one +live .*v4l2://{device}$", told, re.MULTILINE), told
