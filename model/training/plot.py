"""Draws stages' curves: `python -m model.training.plot curves.png runs/base runs/nothing`; several folders share each panel."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from model.training.saving import CURVE

COLUMNS = 4
PANEL = (3.2, 1.7)
"""Inches of a curve's panel, at 100 pixels an inch."""
PLAIN = ("lr", "loss", "matching", "divergence", "guiding", "norm")
"""What is no share of right answers."""

Points = list[tuple[float, float]]


def read(folder: Path) -> tuple[float, dict[str, Points]]:
    """A curve's last minute, and by name what its rows tell as (minutes, value). Raises FileNotFoundError, ValueError."""
    path = folder / CURVE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name the folder that the training wrote")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        last = rows[-1]["minutes"] if len(rows) > 1 else 0.0
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a curve: its lines are JSON objects with minutes") from None
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} rows: a curve needs two")
    values: dict[str, Points] = defaultdict(list)
    for row in rows:
        told = {name: row[name] for name in PLAIN if name in row} | row.get("right", {})
        told |= {f"{name} frames": right / asked for name, (right, asked) in row.get("probe", {}).items() if asked}
        for name, value in told.items():
            values[name].append((row["minutes"], value))
    return last, dict(values)


def draw_curves(folders: Sequence[Path]) -> Figure:
    """All curves of stages: losses, rate and norm from 0 to their ninth decile, then each share of right answers from 0 to 1.

    Raises FileNotFoundError, ValueError.
    """
    found = {folder.name: read(folder) for folder in folders}
    names = list(dict.fromkeys(name for _, values in found.values() for name in values))
    names.sort(key=lambda name: (name not in PLAIN, not name.endswith(" frames")))
    rows = -(-len(names) // COLUMNS)
    figure = Figure((COLUMNS * PANEL[0], rows * PANEL[1]), dpi=100, layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, COLUMNS, i + 1)
        drawn = {folder: values[name] for folder, (_, values) in found.items() if name in values}
        ordered = sorted(value for points in drawn.values() for _, value in points)
        top = 1.0 if name not in PLAIN else max(ordered[len(ordered) * 9 // 10], 1e-9)
        for folder, points in drawn.items():
            axes.plot([at for at, _ in points], [value for _, value in points], linewidth=1, label=folder)
        axes.set(xlim=(0, max(last for last, _ in found.values())), ylim=(0, 1.05 * top))
        ends = ", ".join(f"{points[-1][1]:.3g}" for points in drawn.values())
        axes.set_title(f"{name}, {ends} at the end", fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        axes.grid(alpha=0.3)
        if i == 0 and len(found) > 1:
            axes.legend(fontsize=6)
    figure.supxlabel("minutes", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("folders", type=Path, nargs="+", help="folders that stages wrote")
    given = parser.parse_args()
    try:
        figure = draw_curves(given.folders)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    figure.savefig(given.out)


if __name__ == "__main__":
    main()
