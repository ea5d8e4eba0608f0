"""Draws a run's curves from its log: `python -m model.training.plot runs/nano curves.png`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure

COLUMNS = 4
PANEL = (3.2, 1.7)
"""Inches of a curve's panel, at 100 pixels an inch."""


def read(path: Path) -> tuple[list[float], dict[str, list[tuple[float, float]]]]:
    """Minutes of every row of a log, and by column what it holds as (minutes, value). Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name the folder that the training wrote")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} rows: a curve needs two")
    minutes = [float(row["minutes"]) for row in rows]
    names = [name for name in rows[0] if name not in ("step", "minutes", "length")]
    values = {
        name: [(at, float(row[name])) for at, row in zip(minutes, rows, strict=True) if row[name]] for name in names
    }
    return minutes, values


def draw_curves(run: Path) -> Figure:
    """All curves of a run: losses, rate and norm from 0 to their ninth decile, then each skill's share of right answers from 0 to 1.

    Raises FileNotFoundError, ValueError.
    """
    minutes, values = read(run / "log.csv")
    rows = -(-len(values) // COLUMNS)
    figure = Figure((COLUMNS * PANEL[0], rows * PANEL[1]), dpi=100, layout="constrained")
    for i, (name, points) in enumerate(values.items()):
        axes = figure.add_subplot(rows, COLUMNS, i + 1)
        share = name not in ("lr", "loss", "guiding", "norm")
        ordered = sorted(value for _, value in points)
        top = 1.0 if share or not points else max(ordered[len(ordered) * 9 // 10], 1e-9)
        last = f", {points[-1][1]:.3g} at the end" if points else ""
        axes.plot([at for at, _ in points], [value for _, value in points], linewidth=1)
        axes.set(xlim=(0, minutes[-1]), ylim=(0, 1.05 * top))
        axes.set_title(f"{name}{last}", fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
    figure.supxlabel("minutes", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that holds log.csv")
    parser.add_argument("out", type=Path, help="picture to write")
    given = parser.parse_args()
    try:
        figure = draw_curves(given.run)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    figure.savefig(given.out)


if __name__ == "__main__":
    main()
