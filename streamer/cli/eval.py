"""`streamer eval`: examines a checkpoint, and says how often it is right, skill by skill and by how long ago the evidence was."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

SUITES = ("world", "watches", "questions", "streamingbench", "ovo-bench")
FPS = 4.0
"""Frames a second that clips are shown at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `streamer eval`."""
    parser.add_argument(
        "model",
        nargs="?",
        default=argparse.SUPPRESS,
        help="nano, a checkpoint folder or a repository (default nano)",
    )
    parser.add_argument("--model", default="nano", help="the same, named")
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="world",
        help="what is examined: the made world, watches in it, questions about your own clips, or a public benchmark (default world)",
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the suite's files of questions, and its videos")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="where replies are kept, to go on there (default in FOLDER)"
    )
    parser.add_argument(
        "--fps", type=_rate, default=FPS, help=f"frames a second that clips are shown at (default {FPS:g})"
    )
    parser.add_argument(
        "--controls",
        action="store_true",
        help="with clips: ask everything of who saw the last four frames only as well, which tells memory from guessing",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="with watches: first measure what the probability of yes is worth, into yes_no.json beside the weights",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--quick", action="store_true", help="few questions: ten minutes on two CPU cores, without the oldest streams"
    )
    part.add_argument(
        "--through-video",
        action="store_true",
        help="only what H.264 and the daemon cost: a file, a daemon and its websocket beside tensors in memory",
    )
    parser.add_argument(
        "--fresh-seeds", type=int, default=0, metavar="N", help="draw N new seeds instead of the fixed one"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 240:
        raise argparse.ArgumentTypeError(f"{text} is no rate above 0 and up to 240")
    return value


def run(options: argparse.Namespace) -> int:
    """Examines and prints; returns the exit code."""
    suites = {"world": _world, "watches": _watches}
    try:
        return suites.get(options.suite, _clips)(options)
    except ModuleNotFoundError as error:  # a wheel has no world
        if error.name != "model.world":
            raise
        print(f"streamer: {error}", file=sys.stderr)
        return 1


def _world(options: argparse.Namespace) -> int:
    from model.checkpoint import CheckpointError
    from model.evaluation.run import evaluate, table

    fresh = max(0, options.fresh_seeds)
    failures: tuple[type[Exception], ...] = (CheckpointError, FileNotFoundError)
    try:
        if options.through_video:
            from streamer.cli import eval_video

            failures += eval_video.FAILURES
            marks, found = eval_video.measure(options.model, options.device, fresh=fresh)
            lines = eval_video.table(marks, found)
        else:
            marks, found = evaluate(options.model, device=options.device, quick=options.quick, fresh=fresh)
            lines = table(marks)
    except failures as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if options.json else "\n".join(lines))
    return 0


def _watches(options: argparse.Namespace) -> int:
    from model.checkpoint import CheckpointError
    from streamer.cli import eval_watches

    try:
        facts = eval_watches.measure(
            options.model,
            options.device,
            quick=options.quick,
            fresh=max(0, options.fresh_seeds),
            calibrate=options.calibrate,
        )
    except (CheckpointError, FileNotFoundError) as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    print(json.dumps(facts, indent=1) if options.json else "\n".join(eval_watches.table(facts)))
    return 0


def _clips(options: argparse.Namespace) -> int:
    from model.checkpoint import CheckpointError

    if options.data is None:
        print(f"streamer: --suite {options.suite} needs --data FOLDER, with its questions and videos", file=sys.stderr)
        return 2
    from streamer.cli import eval_clips

    dtype = "bfloat16" if options.device == "cuda" else "float32"
    model = {"name": options.model, "device": options.device, "dtype": dtype}
    try:
        facts = eval_clips.measure(
            options.data, model, options.fps, options.results, options.suite, controls=options.controls
        )
    except (*eval_clips.FAILURES, CheckpointError, FileNotFoundError) as error:
        print(f"streamer: {error}", file=sys.stderr)
        return 1
    print(json.dumps(facts, indent=1, ensure_ascii=False) if options.json else "\n".join(eval_clips.table(facts)))
    return 0 if facts["asked"] else 1
