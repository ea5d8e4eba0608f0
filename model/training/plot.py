"""Draws a run's curves from its log: `python -m model.training.plot runs/nano curves.png`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, WIDTH, HEIGHT = 4, 320, 170
LEFT, TOP, RIGHT, BOTTOM = 40, 30, 14, 24
"""Pixels around the plot within a panel."""
INK, FAINT, LINE = (40, 40, 40), (222, 222, 222), (31, 92, 190)


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


def panel(title: str, points: list[tuple[float, float]], end: float, share: bool) -> Image.Image:
    """One curve over `end` minutes; a `share` goes from 0 to 1, anything else from 0 to its ninth decile."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    ordered = sorted(value for _, value in points)
    top = 1.0 if share or not points else max(ordered[len(ordered) * 9 // 10], 1e-9)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    for part in (0.0, 0.5, 1.0):
        y = TOP + height * (1 - part)
        draw.line((LEFT, y, LEFT + width, y), FAINT)
        draw.text((LEFT - 5, y), f"{part * top:.2g}", INK, font, "rm")
    last = f", {points[-1][1]:.3g} at the end" if points else ""
    draw.text((LEFT, 8), f"{title}{last}", INK, ImageFont.load_default(12))
    draw.text((LEFT, HEIGHT - 8), "0", INK, font, "mm")
    draw.text((LEFT + width, HEIGHT - 8), f"{end:.1f} min", INK, font, "rm")
    line = [(LEFT + width * at / end, TOP + height * (1 - min(value / top, 1.05))) for at, value in points]
    draw.line(line, LINE, 2, "curve")
    return picture


def draw_curves(run: Path) -> Image.Image:
    """All curves of a run: losses, rate and norm, then each skill's share of questions answered right while it learned."""
    minutes, values = read(run / "log.csv")
    rows = -(-len(values) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * WIDTH, rows * HEIGHT), "white")
    for i, (name, points) in enumerate(values.items()):
        share = name not in ("lr", "loss", "guiding", "norm")
        sheet.paste(panel(name, points, minutes[-1], share), (i % COLUMNS * WIDTH, i // COLUMNS * HEIGHT))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that holds log.csv")
    parser.add_argument("out", type=Path, help="picture to write")
    given = parser.parse_args()
    try:
        picture = draw_curves(given.run)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    picture.quantize(32).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
