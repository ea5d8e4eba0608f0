"""`streamer verify`: whether a checkpoint runs on this machine as it was made to, held to transformers."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from model.evaluation.verify import Report

FRAMES = 6
"""Of the packaged clip, half a second apart."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `streamer verify`."""
    parser.add_argument("model", help="a checkpoint folder or a repository, owner/name")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of our side (default float32); bfloat16 may be twice as far from transformers' float32 as its bfloat16 is",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(options: argparse.Namespace) -> int:
    """Prints what was found; returns 1 where the checkpoint is not to be trusted here."""
    from model import CapacityError, ConfigError
    from model.checkpoint import CheckpointError
    from model.evaluation.verify import verify

    try:
        report = verify(options.model, clip(), device=options.device, dtype=options.dtype)
    except ModuleNotFoundError as error:
        print(f"streamer: {error.name} is not installed: pip install 'streamer[verify]'", file=sys.stderr)
        return 1
    except (CheckpointError, ConfigError, CapacityError) as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({**asdict(report), "trusted": report.trusted, "verdict": report.verdict}, ensure_ascii=False))
    else:
        print("\n".join(lines(report)))
    return int(not report.trusted)


def lines(report: Report) -> list[str]:
    """The report for a person."""
    out = [f"{report.model} in {report.dtype} beside transformers in float32"]
    for part in report.parts:
        out.append(f"  {part.name}: {part.error:.1e} off, {part.allowed:.0e} may be{'' if part.fine else '  WRONG'}")
    if report.parts:
        out += [f"  first tokens here: {report.ours!r}", f"  transformers':     {report.theirs!r}"]
    for mark in report.marks:
        out.append(
            f"  {mark.shown}: colours now {mark.now}/{mark.asked} (guesses: {mark.luck(mark.now):.1%}), "
            f"at the beginning {mark.before}/{mark.asked} ({mark.luck(mark.before):.1%})"
        )
    return [*out, report.verdict]


def clip() -> list[np.ndarray]:
    """Pictures of the packaged clip, half a second apart."""
    import av

    from capture.sources.demo import CLIP

    pictures: list[np.ndarray] = []
    with av.open(str(CLIP)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= len(pictures) / 2:
                pictures.append(frame.to_ndarray(format="rgb24"))
            if len(pictures) == FRAMES:
                break
    return pictures
