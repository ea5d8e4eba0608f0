"""How far a model's probability of yes is to be trusted: a file beside its weights that `streamer eval` makes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoint import CheckpointError

log = logging.getLogger("streamer")
FILE = "yes_no.json"
ENDS = 1 << 20
"""Bytes at both ends of a file of weights of which its digest is made: all of many gigabytes would take too long at each start."""


@dataclass(frozen=True)
class Calibration:
    """What a logit of yes against no (0 is even) is worth: `scale` times itself plus `shift`. Without numbers, what it says."""

    scale: float = 1.0
    shift: float = 0.0

    def probability(self, logits: Tensor) -> Tensor:
        """Of yes, for each logit."""
        return (self.scale * logits + self.shift).sigmoid()


def digest(folder: Path) -> str:
    """Tells the weights of a checkpoint folder from any others, whatever they are loaded as; 32 hexadecimal digits."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        found.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            found.update(file.read(ENDS))
            file.seek(max(ENDS, size - ENDS))
            found.update(file.read(ENDS))
    return found.hexdigest()[:32]


def read_calibration(folder: Path) -> Calibration:
    """The calibration beside a folder's weights; none where there is no file, or one that is of other weights, which is logged.

    Raises CheckpointError for a file that is none.
    """
    path = folder / FILE
    if not path.is_file():
        return Calibration()
    try:
        facts = json.loads(path.read_text())
        found, weights = Calibration(float(facts["scale"]), float(facts["shift"])), str(facts["weights"])
        if not (0 < found.scale < 100 and abs(found.shift) < 100):
            raise ValueError(f"scale {found.scale:g} and shift {found.shift:g} are none")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no calibration ({error!r}): remove it, or let streamer eval make it"
        ) from None
    if weights != digest(folder):
        log.warning(
            "%s is of other weights than lie beside it and is passed over: let streamer eval make it anew", path
        )
        return Calibration()
    return found


def write_calibration(folder: Path, calibration: Calibration, **about: Any) -> Path:
    """Puts a calibration beside a folder's weights, with what is to be known `about` it; returns its path."""
    facts = {"weights": digest(folder), "scale": round(calibration.scale, 4), "shift": round(calibration.shift, 4)}
    path = folder / FILE
    path.write_text(json.dumps(facts | about, indent=1) + "\n")
    return path
