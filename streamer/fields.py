"""What the keys of a configuration may hold: numbers with their units, names, and sections of them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LONGEST_NUMBER = 40
"""Characters of a number with its unit."""
_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "seconds": 1, "min": 60, "m": 60, "h": 3600, "fps": 1, "hz": 1, "/s": 1}


def _plain_number(value: Any) -> Any:
    """Refuses what is not a number by saying which number it probably is ("25fps", "200ms", "1 min")."""
    if not isinstance(value, bool | str):
        return value
    text = str(value)[: LONGEST_NUMBER + 1]  # what is matched here would take ever longer
    written = len(text) <= LONGEST_NUMBER and re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([a-z/]*)\s*", text.lower())
    if written and (not written[2] or written[2] in _UNITS):
        raise ValueError(f"is not a plain number: write {float(written[1]) * _UNITS.get(written[2], 1):g}")
    raise ValueError("is not a number")


Number = Annotated[float, BeforeValidator(_plain_number), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_plain_number)]
Seconds = Annotated[Number, Field(gt=0, le=86_400, description="seconds")]
PerSecond = Annotated[Number, Field(gt=0, le=1_000, description="a number per second")]
Bytes = Annotated[Whole, Field(ge=1_000, description="bytes, or bytes a second")]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
NAME_MEND = "use letters, digits, '_', '-' and '.', 64 at most"
Name = Annotated[str, Field(pattern=NAME)]


class Section(BaseModel):
    """Keys that belong together: no others are taken, and none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
