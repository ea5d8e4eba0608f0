"""`demo:`, the clip that ships with the project."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from capture.source import SourceOptions
from capture.sources.container import ContainerSource

CLIP = Path(__file__).parent.parent / "clips" / "demo.mp4"
"""Made by `python -m model.world.make_demo`, as is what is told of it beside it."""


def demo_source(options: SourceOptions) -> ContainerSource:
    """The packaged clip, in a loop at its own pace."""
    source = ContainerSource(str(CLIP), replace(options, loop=True), live=False)
    source.name = "demo:"
    return source


def demo_truth() -> dict[str, Any]:
    """What is in the clip: its `things` with their times, and `questions` with what is right to answer when ("from", "to" seconds)."""
    truth: dict[str, Any] = json.loads(CLIP.with_suffix(".json").read_text(encoding="utf-8"))
    return truth
