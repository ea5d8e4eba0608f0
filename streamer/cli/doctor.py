"""`streamer doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from model.config import InfiniteVLConfig
    from model.serving.catalogue import Dtype

CODECS = ("h264", "hevc", "vp8", "mjpeg")
MOST_FILES = 4_096


@dataclass(frozen=True, slots=True)
class Finding:
    """`verdict` is good, hint (something could be better) or bad (something does not work); `mend` says what to do."""

    part: str
    verdict: Literal["good", "hint", "bad"]
    fact: str
    mend: str = ""


def run(options: argparse.Namespace) -> int:
    """Prints what is found; returns 1 where something does not work."""
    findings = list(examine(options.host, options.port))
    if options.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, ensure_ascii=False))
    else:
        marks = {"good": "ok  ", "hint": "hint", "bad": "BAD "}
        for finding in findings:
            mend = f"\n        → {finding.mend}" if finding.mend else ""
            print(f"{marks[finding.verdict]}  {finding.part}: {finding.fact}{mend}")
    return int(any(finding.verdict == "bad" for finding in findings))


def examine(host: str, port: int) -> Iterator[Finding]:
    """Every finding; a check that breaks is a finding too."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        machine,
        device,
        decoders,
        cameras,
        lambda: listening(host, port),
        weights,
        checkpoints,
    ]
    for check in checks:
        name = getattr(check, "__name__", "check")
        try:
            yield from check()
        except ModuleNotFoundError as error:
            yield Finding(
                name, "bad", f"{error.name} is not installed", "install streamer[daemon]; a client needs none of it"
            )
        except Exception as error:
            yield Finding(name, "bad", f"{type(error).__name__}: {error}", "install streamer again")


def machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    fact = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {cores} cores"
    if cores < 2:
        yield Finding("machine", "hint", fact, "two cores are wanted: one for the model, one to decode and talk")
    else:
        yield Finding("machine", "good", fact)
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < min(MOST_FILES, most):
        yield Finding("open files", "hint", f"at most {files}", f"ulimit -n {MOST_FILES}, for a crowd of clients")


def device() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
        if devices:
            mend = "install a torch with CUDA and check the driver: nvidia-smi"
            yield Finding("GPU", "bad", f"{devices[0]} is there, but torch {torch.__version__} can't use it", mend)
        else:
            yield Finding("GPU", "good", f"none; torch {torch.__version__} computes on the CPU, enough for the nano")
        return
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    yield Finding("GPU", "good", f"{name}, {memory / 2**30:.0f} GiB, torch {torch.__version__}")
    missing = [package for package in ("fla", "triton") if find_spec(package) is None]
    if missing:
        yield Finding("kernels", "hint", f"{' and '.join(missing)} missing", "pip install 'streamer[gpu]'")


def decoders() -> Iterator[Finding]:
    import av

    lacking = [name for name in CODECS if name not in av.codecs_available]
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    if lacking:
        yield Finding("decoders", "bad", f"no {', '.join(lacking)}", "install av from PyPI: its wheel holds FFmpeg")
    else:
        yield Finding("decoders", "good", f"{', '.join(CODECS)} (libavcodec {version}, av {av.__version__})")


def cameras() -> Iterator[Finding]:
    devices = sorted(Path("/dev").glob("video[0-9]*"))
    locked = [str(device) for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if locked:
        mend = "sudo usermod -aG video $USER, and log in again"
        yield Finding("cameras", "bad", f"{', '.join(locked)} may not be opened", mend)
    else:
        yield Finding("cameras", "good", ", ".join(map(str, devices)) or "none attached; streams may come by network")


def listening(host: str, port: int) -> Iterator[Finding]:
    where = f"{host}:{port}"
    try:
        with socket.create_server((host, port), reuse_port=False):
            yield Finding("port", "good", f"{where} is free")
    except OSError as error:
        mend = "a daemon may be running already (streamer status); else choose another: --port"
        yield Finding("port", "hint", f"{where}: {error.strerror or error}", mend)


def weights() -> Iterator[Finding]:
    from model.serving.runner import NANO

    files = list(NANO.glob("*.safetensors"))
    if files:
        size = sum(file.stat().st_size for file in files)
        yield Finding("nano", "good", f"trained weights, {size / 1e6:.1f} MB")
    else:
        yield Finding("nano", "hint", "no trained weights: it runs with random ones", "name a model: --model")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    place = next(each for each in (home, *home.parents) if each.exists())
    if not os.access(place, os.W_OK):
        yield Finding("downloads", "bad", f"{home} can't be written to", "set HF_HOME to a folder that can")


def checkpoints() -> Iterator[Finding]:
    """Those beside the nano that this machine has memory for: on a CPU in the dtype that sees more, else in the device's plain one."""
    import torch

    from model.serving.catalogue import dtypes, fit, known, outline
    from model.serving.expectation import expect, products_per_second
    from streamer.cli.models import command
    from streamer.config import LimitsConfig
    from streamer.loading import threads

    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slots = LimitsConfig().streams + LimitsConfig().answers
    ways = dtypes(kind) if kind.type == "cpu" else dtypes(kind)[:1]
    there = [(one, outline(one.config)) for one in known() if one.name != "nano"]
    fitting = [(one, [way for way in ways if not fit(model, way, kind, slots).missing]) for one, model in there]
    fitting = [(one, here) for one, here in fitting if here]
    if not fitting:
        yield Finding(
            "checkpoints", "hint", "none but the nano fits into free memory", "streamer models says what is missing"
        )
        return
    speeds: dict[tuple[int, str], float] = {}

    def speed(config: InfiniteVLConfig, way: Dtype) -> float:
        """As the daemon would compute with it."""
        count = threads(kind.type, config)
        if (count, way) not in speeds:
            torch.set_num_threads(count)
            speeds[count, way] = products_per_second(kind, way)
        return speeds[count, way]

    for one, here in fitting:
        expected = [(expect(one.config, speed(one.config, way)), way) for way in here]
        found, dtype = max(expected, key=lambda each: (each[0].side, each[0].rate))
        fact = f"about {found.rate:.2g} steps a second at {found.side}×{found.side} in {dtype}"
        if one.config.frames_per_second is not None:
            fact += f", trained with {found.trained:g}"
        verdict: Literal["good", "hint"] = "good" if found.rate >= found.trained else "hint"
        yield Finding(one.name, verdict, fact, command(one.name, kind.type, dtype))
