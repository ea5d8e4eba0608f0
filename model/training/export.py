"""Makes a checkpoint folder of a stage: `python -m model.training.export runs/online checkpoints/online`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from model.checkpoint import save_checkpoint
from model.training.dataset import TOKENIZER
from model.training.saving import CURVE, STATE, Saved
from model.training.stages import StageError

KEPT = (CURVE, STATE, "marks.json")
"""What a stage says of itself, kept beside the weights."""


def export(run: Path, folder: Path) -> None:
    """Writes the running mean of a stage's weights as a checkpoint (float16), and what it says of itself into `training/`.

    Raises StageError.
    """
    saved = Saved(run)
    vocabulary = saved.standing.recipe.get("vocabulary")
    save_checkpoint(saved.network(), Path(str(vocabulary)) if vocabulary else TOKENIZER, folder, torch.float16)
    (folder / "training").mkdir(exist_ok=True)
    for name in KEPT:
        if (saved.record / name).is_file():
            shutil.copy(saved.record / name, folder / "training" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that a stage wrote")
    parser.add_argument("folder", type=Path, help="checkpoint folder to write")
    given = parser.parse_args()
    try:
        export(given.run, given.folder)
    except StageError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
