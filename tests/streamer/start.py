"""How long a start takes: `python -m tests.streamer.start FOLDER [--preset 4b]` saves random weights there and starts the daemon on them.

Three times, each in a process of its own: with no compiled kernels and the weights on disk alone; with kernels kept and the
weights on disk alone; with both kept. Seconds count from the process' beginning.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

RUNS = (("cold", True, True), ("kernels kept", False, True), ("kernels and pages kept", False, False))
"""Name, whether compiled kernels are forgotten first, whether cached pages are."""


def write(folder: Path, preset: str, device: str) -> None:
    """Saves the preset with random weights in bfloat16."""
    from model.checkpoint import save_checkpoint
    from model.serving.random_weights import random_config, random_model, random_vocabulary
    from model.serving.runner import NANO

    began = time.monotonic()
    config = random_config(preset)
    folder.mkdir(parents=True, exist_ok=True)
    random_vocabulary(NANO / "tokenizer.json", config).save(str(folder / "tokenizer.json"))
    save_checkpoint(random_model(config, device, torch.bfloat16), folder / "tokenizer.json", folder, torch.bfloat16)
    files = list(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    print(f"wrote {size / 1e9:.2f} GB in {len(files)} files in {time.monotonic() - began:.1f} s", flush=True)


def cached() -> int:
    """Bytes of files in memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Cached:"))


def drop(folder: Path) -> str:
    """Takes the folder's files out of the page cache; says how, and how much less is in it."""
    os.sync()
    before = cached()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")
        how = "drop_caches"
    except OSError:
        for file in folder.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        how = "posix_fadvise"
    return f"{how}: {(before - cached()) / 1e9:.2f} GB less in the page cache"


async def start(folder: Path, device: str, dtype: str, began: float) -> dict[str, float]:
    """Starts the daemon on the folder, in this process that began at `began` (`time.monotonic`)."""
    from streamer.config import parse_config
    from streamer.daemon import Daemon

    model = {"name": str(folder), "device": device, "dtype": dtype}
    daemon = Daemon(parse_config({"server": {"port": 0}, "model": model}))
    engine = daemon.assistant.engine
    load, marks = engine._load, [time.monotonic()]

    def timed():  # type: ignore[no-untyped-def]
        marks.append(time.monotonic())
        runner = load()
        if device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.monotonic())
        return runner

    engine._load = timed
    await daemon.start()
    ready = time.monotonic()
    await daemon.stop()
    imported, asked, loaded = marks
    return {"imports": imported - began, "load": loaded - asked, "capture": ready - loaded, "ready": ready - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="4b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.began is not None:
        print(json.dumps(asyncio.run(start(given.folder, given.device, given.dtype, given.began))), flush=True)
        os._exit(0)
    if not (given.folder / "config.json").exists():
        write(given.folder, given.preset, given.device)
    with tempfile.TemporaryDirectory() as kernels:
        place: dict[str, str] = {}
        for name, forget, fresh in RUNS:
            how = drop(given.folder) if fresh else "pages left as they are"
            if forget:
                place = {"TRITON_CACHE_DIR": tempfile.mkdtemp(dir=kernels)}
            command = [sys.executable, "-m", "tests.streamer.start", *sys.argv[1:], "--began", str(time.monotonic())]
            run = subprocess.run(command, env=os.environ | place, capture_output=True, text=True)
            if run.returncode:
                sys.exit(f"{name}: exit {run.returncode}\n{run.stderr[-2000:]}")
            seconds = json.loads(run.stdout.splitlines()[-1])
            told = ", ".join(f"{what} {value:.1f}" for what, value in seconds.items())
            print(f"start, {name} ({how}), seconds: {told}", flush=True)


if __name__ == "__main__":
    main()
