"""`v4l2://` through FFmpeg's own code for cameras; only the kernel's part is played, as no camera is here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capture.lab import HASTY

HERE = Path(__file__).parent
PROGRAM = """
import json, statistics, sys
from itertools import pairwise
from pathlib import Path
from tests.capture.lab import *
device = Path(sys.argv[1])
with watching(f"v4l2://{device}", camera_size=(320, 180), camera_rate=20, pixel_format="yuyv422") as watcher:
    watcher.more(20)
    device.unlink()
    watcher.until(State.WAITING)
    reason = watcher.source.status.reason
    wait_for(lambda: watcher.source.status.reconnects >= 1)
    again = watcher.source.status.reason
    device.touch()
    took = watcher.until(State.LIVE) + watcher.more(5)
frames = watcher.frames()
print(json.dumps({
    "reason": reason, "again": again, "took": took, "shape": frames[0].pixels.shape,
    "marks": sum(frame.discontinuity for frame in frames),
    "rate": 1 / statistics.median(b.time - a.time for a, b in pairwise(frames[1:17])), "brightest": int(frames[0].pixels.max()),
}))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: sh tests/system-packages.sh")
def test_a_camera_is_watched_unplugged_and_plugged_in_again(tmp_path: Path) -> None:
    library, device = tmp_path / "camera.so", tmp_path / "video0"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, HERE / "camera.c", "-ldl"], check=True)
    device.touch()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(device)],
        env={**os.environ, "LD_PRELOAD": str(library), "CAMERA": str(device)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["shape"] == [180, 320, 3] and told["brightest"] > 240
    assert told["rate"] == pytest.approx(20, rel=0.2)
    assert "plugged in" in told["reason"] and "plugged in" in told["again"]
    assert told["took"] < 5 + HASTY.backoff_most * (1 + HASTY.jitter) and told["marks"] == 1
