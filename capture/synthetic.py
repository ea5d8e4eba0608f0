"""`demo:`, the clip that ships with the project."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capture.container import ContainerSource
from capture.source import SourceOptions

CLIP = Path(__file__).parent / "clips" / "demo.mp4"


def demo_source(options: SourceOptions) -> ContainerSource:
    """The packaged clip, in a loop at its own pace."""
    source = ContainerSource(str(CLIP), replace(options, loop=True), live=False)
    source.name = "demo:"
    return source
