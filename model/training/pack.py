"""Packs the pictures that the world is drawn with into one file: `python -m model.training.pack SOURCES OUTPUT`.

SOURCES is a folder that holds the unpacked packages named in LICENCES.md beside this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.training.things import CHARACTERS, NAMES, OBJECTS

Picture = NDArray[np.uint8]

SIDE = 192
"""Backgrounds are squares of this many pixels."""
GLYPH_HEIGHT, GLYPH_WIDTH, CAP_HEIGHT = 40, 48, 30

FONTS = (
    "Lato-Bold", "Lato-Regular", "LiberationSans-Bold", "LiberationSerif-Regular", "LiberationSerif-Bold", "LiberationMono-Bold",
    "LiberationSansNarrow-Bold", "OpenSans-Bold", "OpenSans-Regular", "Hack-Bold", "Quicksand-Bold", "FreeSerifBold",
    "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "Roboto-Regular", "Roboto-Bold", "RobotoCondensed-Bold",
    "Comfortaa-Bold", "Play-Bold", "LeagueSpartan-Bold", "Inter-Bold", "Inter-Regular", "FiraCode-Bold", "EBGaramond12-Bold",
    "Courier Prime Bold", "Vollkorn-Bold", "Tuffy_Bold", "mononoki-Bold", "NotoSans-Bold", "NotoSerif-Bold",
    "NotoSansDisplay-Regular", "Go-Bold", "Go-Mono-Bold", "Dosis-Bold", "Karla-Bold", "RobotoSlab-Bold", "RobotoSlab-Regular",
    "CharisSIL-Bold", "Caladea-Bold", "AccanthisADFStd-Bold", "GilliusADF-Bold", "GilliusADF-BoldCond", "RomandeADFStd-DemiBold",
    "UniversalisADFStd-BoldCond", "UniversalisADFStd-Bold", "BebasNeue-Bold", "LinLibertine_RB", "Inconsolata",
    "Anonymous Pro B",
)  # fmt: skip
HELD_OUT_FONTS = ("Carlito-Bold", "JetBrainsMono-Bold", "Cantarell-Bold", "YanoneKaffeesatz-Bold", "Cabin-Bold")

STILLS = [
    "building.jpg",
    "aloeL.jpg",
    "board.jpg",
    "stuff.jpg",
    "graf1.png",
    "graf3.png",
    "rubberwhale1.png",
    "box_in_scene.png",
    "plant.jpg",
    "aero1.jpg",
    "aero3.jpg",
    "Blender_Suzanne1.jpg",
    "starry_night.jpg",
    "pic2.png",
    "astronaut.png",
    "brick.png",
    "camera.png",
    "coins.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "moon.png",
    "cell.png",
]
"""None shows what a held-out one shows from another side."""
HELD_OUT_STILLS = (
    "leuvenB.jpg", "gravel.png", "basketball1.png", "motorcycle_left.png", "right07.jpg",
)  # fmt: skip
VIDEOS = (
    "vtest.avi", "bigbuckbunny.mp4",
)  # fmt: skip
HELD_OUT_VIDEOS = (
    "bikes.mp4", "carphone_pristine.mp4",
)  # fmt: skip
CLIP = 16
"""Frames in a packed clip of video."""


def find(sources: Path, name: str) -> Path:
    return next(path for path in sorted(sources.rglob(name)) if path.is_file())


def fonts(sources: Path, names: tuple[str, ...]) -> tuple[Picture, NDArray[np.int16]]:
    """Glyphs [fonts, characters, height, width] (coverage) and their advance in pixels [fonts, characters]."""
    from PIL import Image, ImageDraw, ImageFont

    glyphs = np.zeros((len(names), len(CHARACTERS), GLYPH_HEIGHT, GLYPH_WIDTH), np.uint8)
    advances = np.zeros(glyphs.shape[:2], np.int16)
    for i, name in enumerate(names):
        path = next(path for path in sorted(sources.rglob(f"{name}.*")) if path.suffix in (".ttf", ".otf"))
        size = 60
        box = ImageFont.truetype(str(path), size).getbbox("H")
        font = ImageFont.truetype(str(path), round(size * CAP_HEIGHT / (box[3] - box[1])))
        baseline = (GLYPH_HEIGHT + CAP_HEIGHT) // 2
        for j, character in enumerate(CHARACTERS):
            box = font.getbbox(character, anchor="ls")
            gap = 3
            advance = min(GLYPH_WIDTH, round(box[2] - box[0]) + 2 * gap)
            picture = Image.new("L", (GLYPH_WIDTH, GLYPH_HEIGHT))
            ImageDraw.Draw(picture).text((gap - box[0], baseline), character, fill=255, font=font, anchor="ls")
            glyphs[i, j], advances[i, j] = np.asarray(picture), advance
    return glyphs, advances


def crops(picture: Picture, count: int, rng: np.random.Generator) -> Iterator[Picture]:
    """Random parts of a picture, each stretched into a square as cameras' pictures are."""
    import cv2

    height, width = picture.shape[:2]
    for i in range(count):
        part_height = int(height * (1.0 if i == 0 else rng.uniform(0.4, 0.9)))
        part_width = min(width, int(part_height * rng.choice([1.0, 4 / 3, 16 / 9])))
        top, left = rng.integers(height - part_height + 1), rng.integers(width - part_width + 1)
        part = picture[top : top + part_height, left : left + part_width]
        yield np.asarray(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def clips(path: Path, count: int) -> Iterator[Picture]:
    """Runs of `CLIP` successive frames spread over a video, [CLIP, SIDE, SIDE, 3]."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.asarray(cv2.resize(read[1][..., ::-1], (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8))
    starts = np.linspace(0, max(0, len(frames) - CLIP), count).astype(int)
    for start in starts:
        part = frames[start : start + CLIP]
        if len(part) == CLIP:
            yield np.stack(part)


def planes(pictures: Picture) -> tuple[Picture, Picture]:
    """RGB [n, SIDE, SIDE, 3] as brightness [n, SIDE, SIDE] and halved colour differences [n, 2, SIDE / 2, SIDE / 2]."""
    import cv2

    converted = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb) for picture in pictures])
    chroma = converted[..., 1:].reshape(len(pictures), SIDE // 2, 2, SIDE // 2, 2, 2).mean((2, 4)).round()
    return converted[..., 0], chroma.transpose(0, 3, 1, 2).astype(np.uint8)


def main(sources: Path, output: Path) -> None:
    import cv2

    rng = np.random.default_rng(0)
    images = {entry["short_name"]: entry["image"] for entry in json.loads(find(sources, "emoji.json").read_text())}
    images |= {n: e["image"] for e in json.loads(find(sources, "emoji.json").read_text()) for n in e["short_names"]}
    folder = find(sources, images["dog"]).parent
    sprites = []
    for short_name in OBJECTS:
        picture = cv2.imread(str(folder / images[short_name]), cv2.IMREAD_UNCHANGED)
        assert picture is not None and picture.shape == (64, 64, 4), short_name
        sprites.append(picture[..., [2, 1, 0, 3]])
    content: dict[str, NDArray[np.generic]] = {"sprites": np.stack(sprites), "names": np.array(NAMES)}
    content["glyphs"], content["advances"] = fonts(sources, FONTS + HELD_OUT_FONTS)
    content["held_out_fonts"] = np.array(len(HELD_OUT_FONTS))
    for split, stills, videos, spread in (("train", STILLS, VIDEOS, 5), ("test", HELD_OUT_STILLS, HELD_OUT_VIDEOS, 2)):
        pictures = []
        for name in stills:
            picture = cv2.imread(str(find(sources, name)), cv2.IMREAD_COLOR)
            assert picture is not None, name
            pictures += list(crops(np.asarray(picture[..., ::-1], np.uint8), 3, rng))
        content[f"{split}_stills"] = np.array(len(pictures))
        for name in videos:
            pictures += [frame for clip in clips(find(sources, name), spread) for frame in clip]
        content[f"{split}_brightness"], content[f"{split}_colour"] = planes(np.stack(pictures))
    np.savez_compressed(output, **content)  # type: ignore[arg-type]
    print(output, output.stat().st_size, {name: value.shape for name, value in content.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
