"""Packs the pictures that the world is drawn with into one file: `python -m model.world.build_assets SOURCES OUTPUT`.

SOURCES is a folder that holds the unpacked packages named in LICENCES.md beside this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.world.objects import CHARACTERS, NAMES, OBJECTS
from model.world.render import CLIP

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
BACKDROPS = (
    "chalkboard", "clothing-store", "hall", "kitchen", "party-room", "room1", "room2", "spotlight-stage",
    "the-movies-inside", "beach-malibu", "canyon", "flower-bed", "forest", "garden-rock", "grand-canyon",
    "gravel-desert", "hill", "lake", "moon", "pathway", "tree", "water-and-rocks", "wave", "woods-and-bench",
    "all-sports-mural", "atom-playground", "bench-with-view", "berkeley-mural", "brick-wall-and-stairs", "brick-wall1",
    "brick-wall2", "building-at-mit", "building-fireproof", "castle", "city-with-water", "city-with-water2", "driveway",
    "graffiti", "hallway_outdoors", "hay_field", "houses", "mansion", "mural-faro", "parking-ramp", "pool", "route66",
    "school2", "silos", "the-movies", "train-tracks1", "train-tracks2", "village", "wooden-house", "baseball-field",
    "basketball-court1-a", "basketball-court1-b", "football-field", "playing-field", "tennis-backboard",
)  # fmt: skip
WALLPAPERS = (
    "Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace", "Picture_1A_by_freespace",
    "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi", "analogpattern_by_Peter_Nerlich", "free_by_Peter_Nerlich",
    "friends_by_Aitzol_Berasategi", "greentock_by_Peter_Nerlich", "life_by_Aitzol_Berasategi",
    "picosdeeuropa_by_Aitzol_Berasategi", "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi",
    "Infinite-Sea_by_Aury88", "Kleiber_by_Lukas_Baubkus",
)  # fmt: skip
ADDED_STILLS = (
    *(f"Backgrounds/*/{name}.jpg" for name in BACKDROPS),
    *(f"{name}.jpg" for name in WALLPAPERS),
    *(f"{name}.png" for name in ("calla", "city", "goldfish")), "string.jpg", "the-mouse.jpg",
    *(f"*{name}*/package/data/image.jpg" for name in (
        "acanthus-mollis", "airplane-from-above", "allium-oreophilum", "french-alpine", "dust-bowl", "nagasaki-boats",
    )),
    "pic1/IMG-20191006-WA0002.jpg", "pic1/IMG_1054.JPG", "pic1/IMG_20200827_231612.jpg", "pic2/IMG_20191224_234846.jpg",
)  # fmt: skip
"""For training alone, so many that what is not of the world is not learnt by heart."""
ADDED_VIDEOS = (
    "realshort.mp4", "cockatoo.mp4", "tree.avi", "cityCC0.mpg", "*FrenchGP.ogv.160p.ogv", "motion.mov", "oa4_launch.webm", "birds.mp4",
)  # fmt: skip
ADDED_SIDE = 128
"""Pixels of a side of their frames, which are enlarged when they are read."""


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


def clips(path: Path, count: int, side: int = SIDE) -> Iterator[Picture]:
    """Runs of `CLIP` successive frames spread over a video, [CLIP, side, side, 3]."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.asarray(cv2.resize(read[1][..., ::-1], (side, side), interpolation=cv2.INTER_AREA), np.uint8))
    starts = np.linspace(0, max(0, len(frames) - CLIP), count).astype(int)
    for start in starts:
        part = frames[start : start + CLIP]
        if len(part) == CLIP:
            yield np.stack(part)


def planes(pictures: Picture) -> tuple[Picture, Picture]:
    """RGB [n, side, side, 3] as brightness [n, side, side] and halved colour differences [n, 2, side / 2, side / 2]."""
    import cv2

    converted = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb) for picture in pictures])
    half = pictures.shape[1] // 2
    chroma = converted[..., 1:].reshape(len(pictures), half, 2, half, 2, 2).mean((2, 4)).round()
    return converted[..., 0], chroma.transpose(0, 3, 1, 2).astype(np.uint8)


def photograph(sources: Path, name: str) -> Picture:
    """RGB [height, width, 3]."""
    import cv2

    picture = cv2.imread(str(find(sources, name)), cv2.IMREAD_COLOR)
    assert picture is not None, name
    return np.asarray(picture[..., ::-1], np.uint8)


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
            pictures += list(crops(photograph(sources, name), 3, rng))
        content[f"{split}_stills"] = np.array(len(pictures))
        for name in videos:
            pictures += [frame for clip in clips(find(sources, name), spread) for frame in clip]
        content[f"{split}_brightness"], content[f"{split}_colour"] = planes(np.stack(pictures))
    # By chances of their own: what was packed before stays what it was.
    rng = np.random.default_rng(1)
    added = [part for name in ADDED_STILLS for part in crops(photograph(sources, name), 2, rng)]
    content["added_brightness"], content["added_colour"] = planes(np.stack(added))
    moving = [frame for name in ADDED_VIDEOS for clip in clips(find(sources, name), 2, ADDED_SIDE) for frame in clip]
    content["moving_brightness"], content["moving_colour"] = planes(np.stack(moving))
    np.savez_compressed(output, **content)  # type: ignore[arg-type]
    print(output, output.stat().st_size, {name: value.shape for name, value in content.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
