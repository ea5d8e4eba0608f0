"""Makes a checkpoint folder of a training run: `python -m model.training.export runs/nano model/nano`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from model.checkpoint import save_checkpoint
from model.config import nano
from model.families.infinitevl import InfiniteVL
from model.training.dataset import TOKENIZER
from model.training.trainer import read_weights

KEPT = ("log.csv", "state.json", "marks.json")
"""What a run says of itself, kept beside the weights."""


def export(run: Path, folder: Path) -> None:
    """Writes the running mean of a run's weights as a checkpoint (float16), and the run's log and recipe into `training/`."""
    model = InfiniteVL(nano())
    weights = read_weights(run, "mean")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    save_checkpoint(model, TOKENIZER, folder, torch.float16)
    (folder / "training").mkdir(exist_ok=True)
    for name in KEPT:
        shutil.copy(run / name, folder / "training" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that the training wrote")
    parser.add_argument("folder", type=Path, help="checkpoint folder to write")
    given = parser.parse_args()
    export(given.run, given.folder)


if __name__ == "__main__":
    main()
