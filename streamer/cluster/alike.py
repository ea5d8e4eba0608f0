"""What all machines of a fleet must have alike: streamer's version, the shared folder, the time of day, and the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROBE = ".streamer-fleet"
"""A file in the shared folder by which the head sees that it is shared."""
CLOCK_SECONDS = 5.0
"""How far an engine's time of day may be from the head's: gaps are told by it."""
Model = tuple[str, str]
"""Name and fingerprint."""


@cache
def streamer_version() -> str:
    """This machine's."""
    try:
        return version("streamer")
    except PackageNotFoundError:
        return "unknown"


def unlike(hello: Mapping[str, Any], probe: str, folder: Path | str, model: Model | None, wall: float) -> str:
    """Why an engine, by what it told of itself, can be given no streams; nothing where it can.

    `probe` is what the head left in the shared `folder`, `model` the others' (None: there are none), `wall` the head's Unix seconds.
    """
    mine, name, fingerprint = streamer_version(), hello["model"], str(hello["fingerprint"])
    apart = abs(hello["wall"] - wall)
    if hello["version"] != mine:
        return f"it is streamer {hello['version']}, this is {mine}: install the same on both"
    if hello["probe"] != probe:
        return f"{folder} is not the same folder there as here: mount it on every machine"
    if apart > CLOCK_SECONDS:
        return f"its clock differs by {apart:.0f} s from this machine's: set both by NTP"
    if model not in (None, (name, fingerprint)):
        assert model is not None
        return (
            f"its model is {name} ({fingerprint[:8]}), the others' {model[0]} ({model[1][:8]}): no stream could go on "
            "there, load the same on all"
        )
    return ""
