"""Paints scenes on the device that trains: sprites and text over backgrounds, then light, lens, film and compression."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.preprocess import MEAN, STD
from model.world.distractors import films
from model.world.layout import LINE, Sheet
from model.world.objects import CHARACTERS, COLOURS, NAMES, SHAPES
from model.world.scene import HELD_OUT_PROCEDURAL, LETTERS, PROCEDURAL, SLOTS, Gallery

ASSETS = Path(__file__).parent / "assets.npz"
SIDE = 64
"""Pixels of a sprite."""
TEXT_WIDTH = 224
"""Pixels of a line of text."""
GROUND = 192
"""Pixels of a background."""
CLIP = 16
"""Frames of a piece of video."""
CLASSES = 1 + len(SHAPES) * len(COLOURS) + len(NAMES) + len(CHARACTERS)
"""What a patch may show: nothing, a shape of a colour, an object, a character."""
CHUNKS = {"cuda": 512, "cpu": 64}
"""Frames painted at once, by device."""


@dataclass(frozen=True)
class Assets:
    """Pictures as packed by `model.world.build_assets`."""

    sprites: np.ndarray
    glyphs: np.ndarray
    advances: np.ndarray
    grounds: np.ndarray
    gallery: Gallery

    @classmethod
    def load(cls, path: Path = ASSETS) -> Assets:
        """Raises FileNotFoundError where the file is missing: it is part of the repository, not of the wheel; ValueError where
        its sprites are not those of `NAMES`, in order."""
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the world's pictures are in the repository, not in the wheel; run from a checkout"
            )
        with np.load(path) as file:
            content = dict(file)
        if content["names"].tolist() != list(NAMES) or len(content["sprites"]) != len(NAMES):
            raise ValueError(f"{path} holds pictures of other things than model.world.objects names: pack it again")
        count, held = len(content["glyphs"]), int(content["held_out_fonts"])
        seen = {
            split: colours(content[f"{split}_brightness"], content[f"{split}_colour"]) for split in ("test", "train")
        }
        kinds = {split: np.split(pictures, [content[f"{split}_stills"]]) for split, pictures in seen.items()}
        added = colours(content["added_brightness"], content["added_colour"])
        moving = enlarged(colours(content["moving_brightness"], content["moving_colour"]))
        kinds["train"] = [np.concatenate(pair) for pair in zip(kinds["train"], (added, moving), strict=True)]
        grounds, stills, clips, at = [], {}, {}, PROCEDURAL
        for split, (photographs, video) in kinds.items():
            stills[split] = range(at, at + len(photographs))
            clips[split] = range(at + len(photographs), at + len(photographs) + len(video), CLIP)
            grounds += [photographs, video]
            at = clips[split].stop
        gallery = Gallery(
            {"train": range(count - held), "test": range(count - held, count)},
            stills,  # type: ignore[arg-type]
            clips,  # type: ignore[arg-type]
            clip=CLIP,
            advances=content["advances"].astype(np.float32) / content["glyphs"].shape[2],
        )
        return cls(content["sprites"], content["glyphs"], content["advances"], np.concatenate(grounds), gallery)

    def cluttered(self, count: int) -> Assets:
        """With `count` pieces of video more for training, in which pieces of its photographs move over others."""
        stills, clips = self.gallery.stills["train"], self.gallery.clips["train"]
        made = films(self.grounds[stills.start - PROCEDURAL : stills.stop - PROCEDURAL], CLIP, count)
        # Training's video is the last of the backgrounds: no other moves.
        more = self.gallery.clips | {"train": range(clips.start, clips.stop + len(made), CLIP)}
        return replace(self, grounds=np.concatenate((self.grounds, made)), gallery=replace(self.gallery, clips=more))


def enlarged(pictures: np.ndarray) -> np.ndarray:
    """Uint8 [n, 3, height, width] at `GROUND` pixels a side."""
    larger = F.interpolate(torch.from_numpy(pictures).float(), (GROUND, GROUND), mode="bilinear", align_corners=False)
    return larger.round().byte().numpy()


def colours(bright: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Brightness and halved colour differences (JPEG's YCrCb) to uint8 RGB [n, 3, height, width]."""
    y = bright.astype(np.float32)
    red, blue = (chroma[:, i].repeat(2, 1).repeat(2, 2).astype(np.float32) - 128 for i in (0, 1))
    rgb = np.stack([y + 1.403 * red, y - 0.714 * red - 0.344 * blue, y + 1.773 * blue], 1)
    whole: np.ndarray = np.clip(rgb.round(), 0, 255).astype(np.uint8)
    return whole


def shape_masks(side: int = SIDE) -> Tensor:
    """Each shape's inside and its inside with an edge around, float32 [shapes, 2, side, side]."""
    fine = side * 4
    line = (torch.arange(fine) + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    radius = torch.hypot(x, y)

    def polygon(*corners: tuple[float, float]) -> Tensor:
        """Signed distance-like field, negative inside, by even-odd crossing."""
        inside = torch.zeros_like(x, dtype=torch.bool)
        for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
            crosses = (ay > y) != (by > y)
            slope = (bx - ax) * (y - ay) / (by - ay if by != ay else 1e-9) + ax
            inside ^= crosses & (x < slope)
        return inside

    ten = [((0.92 if i % 2 == 0 else 0.4) * torch.sin(torch.tensor(i * torch.pi / 5)).item(),
            -(0.92 if i % 2 == 0 else 0.4) * torch.cos(torch.tensor(i * torch.pi / 5)).item() + 0.06) for i in range(10)]  # fmt: skip
    heart = (x / 0.95) ** 2 + (-y * 1.05 + 0.12 - 0.62 * (x.abs() / 0.95).sqrt()) ** 2 < 0.72
    found = {
        "circle": radius < 0.84,
        "square": (x.abs() < 0.78) & (y.abs() < 0.78),
        "triangle": polygon((0.0, -0.86), (0.88, 0.74), (-0.88, 0.74)),
        "star": polygon(*ten),
        "diamond": x.abs() / 0.66 + y.abs() / 0.9 < 1,
        "cross": ((x.abs() < 0.27) & (y.abs() < 0.86)) | ((y.abs() < 0.27) & (x.abs() < 0.86)),
        "ring": (radius < 0.86) & (radius > 0.5),
        "heart": heart,
    }
    inside = torch.stack([found[name] for name in SHAPES]).float()[:, None]
    outer = F.max_pool2d(inside, 4 * 5 + 1, 1, 2 * 5)
    both = torch.cat((inside, outer), 1)
    return F.avg_pool2d(both, 4)


def procedural(seed: int = 1) -> Tensor:
    """Painted backgrounds, float32 [PROCEDURAL, 1, GROUND, GROUND] in [0, 1]: plain, gradients, stripes, checks, blotches, grain.

    The last `HELD_OUT_PROCEDURAL` are drawn from the same kinds by another seed.
    """
    generator = torch.Generator().manual_seed(seed)
    side = GROUND * 2 // 3
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    pictures = []
    for i in range(PROCEDURAL):
        if i == PROCEDURAL - HELD_OUT_PROCEDURAL:
            generator = torch.Generator().manual_seed(seed + 1000)
        kind = i % 8
        angle, frequency, phase = (torch.rand(3, generator=generator) * torch.tensor([3.1416, 24.0, 6.28])).tolist()
        along = x * float(np.cos(angle)) + y * float(np.sin(angle))
        across = y * float(np.cos(angle)) - x * float(np.sin(angle))
        if kind == 0:
            picture = torch.full_like(x, torch.rand((), generator=generator).item())
        elif kind == 1:
            picture = (along + 1.4) / 2.8
        elif kind == 2:
            picture = 0.5 + 0.5 * torch.sin(along * (3 + frequency) + phase).sign()
        elif kind == 3:
            picture = 0.5 + 0.5 * (torch.sin(along * (3 + frequency)) * torch.sin(across * (3 + frequency))).sign()
        elif kind == 4:
            picture = torch.hypot(x - np.sin(angle), y - np.cos(phase)) / 2.8
        else:
            picture = torch.zeros_like(x)
            for size in (3, 6, 12, 24, 48, 96)[kind - 5 :]:
                grain = torch.rand(1, 1, size, size, generator=generator)
                weight = size ** (-0.6 if kind < 7 else -0.1)
                picture = picture + weight * F.interpolate(grain, (side, side), mode="bicubic")[0, 0]
            picture = (picture - picture.min()) / (picture.max() - picture.min())
        pictures.append(picture.clamp(0, 1))
    return F.interpolate(torch.stack(pictures)[:, None], (GROUND, GROUND), mode="bilinear")


def cosine_basis() -> Tensor:
    """The 8-point DCT-II, orthonormal, [8, 8]."""
    n = torch.arange(8.0)
    basis = torch.cos((2 * n[None] + 1) * n[:, None] * torch.pi / 16) * 0.5
    basis[0] *= 0.5**0.5
    return basis


def rounded(picture: Tensor) -> Tensor:
    """To what 8 bits can say, in place."""
    return picture.clamp_(0, 1).mul_(255).round_().div_(255)


def kernels() -> ModuleType | None:
    """The painter's kernels, where triton is there."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("model.world.render_kernels")


class Painter:
    """Paints sheets on `device`; the same sheet and seed give the same pictures on the same device."""

    def __init__(self, assets: Assets, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.kernels = kernels() if self.device.type == "cuda" else None
        self.gallery = assets.gallery
        sprites = torch.from_numpy(assets.sprites).permute(0, 3, 1, 2).float() / 255
        sprites[:, :3] *= sprites[:, 3:]
        masks = shape_masks()

        def soften(x: Tensor) -> Tensor:
            kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
            weight = (kernel[:, None] * kernel)[None, None].repeat(x.shape[1], 1, 1, 1)
            return F.conv2d(x, weight, padding=1, groups=x.shape[1])

        levels = [(sprites, masks)]
        for _ in range(2):
            levels.append((soften(soften(levels[-1][0])), soften(soften(levels[-1][1]))))
        self.sprites = torch.stack([level[0] for level in levels]).to(device)
        self.masks = torch.stack([level[1] for level in levels]).to(device)
        self.glyphs = torch.from_numpy(assets.glyphs).float().div(255).to(device)
        self.advances = torch.from_numpy(assets.advances.astype(np.int64)).to(device)
        painted = procedural().expand(-1, 3, -1, -1)
        grounds = torch.from_numpy(assets.grounds).float() / 255
        self.grounds = torch.cat((painted, grounds)).to(device=device)
        self.basis = cosine_basis().to(device)
        self.line_scale = torch.tensor([assets.glyphs.shape[2] / TEXT_WIDTH, 1.0], device=device)
        self.weights = torch.tensor([0.299, 0.587, 0.114], device=device)[:, None, None]
        self.blur = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=device) / 16
        self.mean, self.std = (torch.tensor(x, device=device)[:, None, None] for x in (MEAN, STD))

    def upload(self, array: np.ndarray) -> Tensor:
        """To the device without waiting for what runs there."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        pinned = tensor.pin_memory() if self.device.type == "cuda" and tensor.numel() else tensor
        return pinned.to(self.device, non_blocking=True)

    def sheet(self, sheet: Sheet) -> dict[str, Tensor]:
        """The sheet's arrays on the device, and its visits as pictures: `things` and `lines`, premultiplied RGBA."""
        arrays = {f.name: self.upload(getattr(sheet, f.name)) for f in fields(sheet)}
        level = (arrays["soft"] * 2.6).long().clamp(max=2)
        kind, which = arrays["kind"], arrays["which"]
        tint, edge = arrays["tint"][:, :, None, None], arrays["edge"][:, :, None, None]
        mask = self.masks[level, which.clamp(max=len(SHAPES) - 1)]
        inside, outer = mask[:, :1], mask[:, 1:]
        shape = torch.cat((inside * tint + (outer - inside).clamp(min=0) * edge, outer), 1)
        emoji = self.sprites[level, which.clamp(max=len(NAMES) - 1)]
        arrays["things"] = torch.where((kind == 0)[:, None, None, None], shape, emoji)
        arrays["lines"], arrays["columns"] = self.lines(arrays)
        shape_class = 1 + which * len(COLOURS) + arrays["colour"]
        emoji_class = 1 + len(SHAPES) * len(COLOURS) + which
        arrays["class"] = torch.where(kind == 0, shape_class, emoji_class)
        return arrays

    def lines(self, arrays: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Each visit's text as a picture [m, 4, height, TEXT_WIDTH] and the character in each of its columns, -1 for none."""
        letters, font = arrays["letters"], arrays["font"]
        there = letters >= 0
        advance = self.advances[font[:, None], letters.clamp(min=0)] * there
        ends = advance.cumsum(1)
        total = ends[:, -1:].clamp(min=1)
        column = torch.arange(TEXT_WIDTH, device=self.device) + 0.5
        squeeze = (total / (LINE * self.glyphs.shape[2])).clamp(min=1.0)
        place = ((column - TEXT_WIDTH / 2) * squeeze + total / 2).floor().long()
        index = (place[..., None] >= ends[:, None]).sum(-1).clamp(max=LETTERS - 1)
        inside = (place >= 0) & (place < total) & there[:, :1]
        character = letters.gather(1, index).clamp(min=0)
        offset = (place - (ends - advance).gather(1, index)).clamp(0, self.glyphs.shape[-1] - 1)
        ink = self.glyphs[font[:, None], character, :, offset].transpose(1, 2) * inside[:, None]
        ink = ink[:, None]
        outline = F.max_pool2d(ink, 5, 1, 2)
        board = ((place >= -6) & (place < total + 6) & there[:, :1])[:, None, None].expand(-1, 1, ink.shape[2], -1)
        back = torch.where(arrays["plate"][:, None, None, None] > 0, board.to(ink.dtype), outline)
        rgb = ink * arrays["tint"][:, :, None, None] + (back - ink).clamp(min=0) * arrays["edge"][:, :, None, None]
        return torch.cat((rgb, torch.maximum(back, ink)), 1), torch.where(inside, character, -1)

    def grid(self, height: int, width: int) -> Tensor:
        """Homogeneous picture coordinates of pixel centres, [height * width, 3]."""
        y = (torch.arange(height, device=self.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=self.device) + 0.5) / width * 2 - 1
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        return torch.stack((xx, yy, torch.ones_like(xx)), -1).view(-1, 3)

    def place(self, base: Tensor, matrix: Tensor) -> Tensor:
        """`base` [p, 3] through `matrix` [n, 3, 3], to [n, p, 2]."""
        moved = base @ matrix.mT
        return moved[..., :2] / moved[..., 2:]

    def paint(
        self, sheet: Sheet, seed: int, height: int = 224, width: int = 224, film: bool = True
    ) -> Iterator[Tensor]:
        """Float32 pictures in [0, 1], at most `CHUNKS` frames at a time, [n, 3, height, width]."""
        for picture in self.pictures(sheet, self.sheet(sheet), seed, height, width, film):
            yield rounded(picture) if film else picture.clamp_(0, 1)

    @torch.no_grad()
    def pictures(
        self, sheet: Sheet, arrays: dict[str, Tensor], seed: int, height: int, width: int, film: bool
    ) -> Iterator[Tensor]:
        """`paint`, from a sheet that is on the device too. Rows are chosen on the host, so that the device never waits."""
        generator = torch.Generator(self.device).manual_seed(seed)
        base, chunk = self.grid(height, width), CHUNKS[self.device.type]
        for start in range(0, len(sheet.ground), chunk):
            part = slice(start, start + chunk)
            if self.kernels is not None and len(sheet.kind):
                picture = self.kernels.compose(self.grounds, arrays, part, height, width)
                yield self.develop(picture, sheet, arrays, part, generator) if film else picture
                continue
            where = self.place(base, arrays["ground_matrix"][part]).unflatten(1, (height, width))
            light = arrays["light"][part][:, :, None, None]
            picture = F.grid_sample(
                self.grounds[arrays["ground"][part]], where, padding_mode="border", align_corners=False
            )
            picture = torch.addcmul(light[:, 3:], picture, light[:, :3]).clamp_(0, 1)
            for slot in range(SLOTS):
                shown = sheet.shown[part, slot]
                written = (shown >= 0) & (sheet.kind[np.maximum(shown, 0)] == 2) if len(sheet.kind) else shown > 0
                for lines, chosen in ((False, (shown >= 0) & ~written), (True, written)):
                    if not chosen.any():
                        continue
                    now, who = self.upload(chosen.nonzero()[0]), self.upload(shown[chosen])
                    where = self.place(base, arrays["matrix"][part][now, slot])
                    if lines:
                        where = where * self.line_scale
                    sprite = arrays["lines" if lines else "things"][who]
                    layer = F.grid_sample(sprite, where.unflatten(1, (height, width)), align_corners=False)
                    picture[now] = torch.addcmul(layer[:, :3], picture[now], 1 - layer[:, 3:])
            yield self.develop(picture, sheet, arrays, part, generator) if film else picture

    def develop(
        self, picture: Tensor, sheet: Sheet, arrays: dict[str, Tensor], part: slice, generator: torch.Generator
    ) -> Tensor:
        """Lens softness, exposure, gamma, noise and block compression."""
        gamma, noise, soft, block = arrays["film"][part][:, :, None, None, None].unbind(1)
        if (sheet.film[part, 2] > 0).any():
            rows = self.upload(sheet.film[part, 2].nonzero()[0])
            picture[rows] = torch.lerp(picture[rows], self.soften(picture[rows]), soft[rows])
        halved = (picture.shape[0], 3, *(s // 2 for s in picture.shape[2:]))
        tinted = torch.randn(halved, device=self.device, generator=generator)
        if self.kernels is not None:
            chance = (generator.initial_seed() + part.start) % (2**31 - 1)
            self.kernels.expose(picture, arrays["exposure"][part], arrays["film"][part], tinted, chance)
        else:
            picture = (picture * arrays["exposure"][part][:, :, None, None]).clamp_(1e-4, 1).pow_(gamma)
            grain = torch.randn(picture.shape[0], 1, *picture.shape[2:], device=self.device, generator=generator)
            picture = picture + noise * (0.7 * grain + F.interpolate(tinted, picture.shape[2:], mode="bilinear"))
        if (sheet.film[part, 3] > 0).any():
            rows = self.upload(sheet.film[part, 3].nonzero()[0])
            picture[rows] = self.compress(picture[rows], block[rows])
        return picture

    def soften(self, picture: Tensor) -> Tensor:
        """A 5-pixel binomial blur."""
        channels = picture.shape[1]
        across = self.blur.view(1, 1, 1, 5).expand(channels, -1, -1, -1)
        softer = F.conv2d(picture, across, padding=(0, 2), groups=channels)
        return F.conv2d(softer, across.transpose(2, 3), padding=(2, 0), groups=channels)

    def compress(self, picture: Tensor, step: Tensor) -> Tensor:
        """Quantises the cosine coefficients of 8×8 blocks, the finer the coarser, as JPEG and H.264 do; colour at half size."""
        bright = (picture * self.weights).sum(1, keepdim=True)
        chroma = F.avg_pool2d(picture - bright, 2)
        height, width = bright.shape[2:]
        blocks = bright.unflatten(3, (width // 8, 8)).unflatten(2, (height // 8, 8)).transpose(3, 4)
        waves = self.basis @ blocks @ self.basis.T
        ramp = torch.arange(8.0, device=picture.device)
        table = (step[..., None, None] * (0.5 + 0.25 * (ramp[:, None] + ramp))).to(picture.dtype)
        waves = (waves / table).round() * table
        bright = (self.basis.T @ waves @ self.basis).transpose(3, 4).reshape(bright.shape)
        coarse = step * 0.7
        chroma = (chroma / coarse).round() * coarse
        result: Tensor = bright + F.interpolate(chroma, (height, width), mode="bilinear", align_corners=False)
        return result

    def patches(self, sheet: Sheet, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The frames as a model with 14-pixel patches, a merge of 2 and paired frames takes them, [steps, 256, 1176], and
        what each patch of each step's last frame shows (`CLASSES`), int64 [steps, 256], in the same order."""
        arrays = self.sheet(sheet)
        patches = torch.empty(len(sheet.ground) // 2, 256, 1176, dtype=dtype, device=self.device)
        start = 0
        for picture in self.pictures(sheet, arrays, seed, 224, 224, True):
            part = patches[start : start + len(picture) // 2]
            start += len(part)
            if self.kernels is not None:
                self.kernels.cut(picture, self.mean, self.std, part)
                continue
            flat = (rounded(picture) - self.mean) / self.std
            blocks = flat.view(-1, 2, 3, 8, 2, 14, 8, 2, 14)
            part.copy_(blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 256, 1176))
        return patches, self.labels(arrays)

    @torch.no_grad()
    def labels(self, arrays: dict[str, Tensor]) -> Tensor:
        """See `patches`."""
        base = self.grid(16, 16)
        shown = arrays["shown"][1::2]
        label = torch.zeros(len(shown), 256, dtype=torch.int64, device=self.device)
        if not len(arrays["kind"]):
            return label
        first_character = 1 + len(SHAPES) * len(COLOURS) + len(NAMES)
        for slot in range(SLOTS):
            there = shown[:, slot] >= 0
            visit = shown[:, slot].clamp(min=0)
            where = self.place(base, arrays["matrix"][1::2, slot])
            pixel = ((where + 1) / 2 * SIDE).floor().long()
            inside = ((pixel >= 0) & (pixel < SIDE)).all(-1)
            pixel = pixel.clamp(0, SIDE - 1)
            opaque = inside & (arrays["things"][visit[:, None], 3, pixel[..., 1], pixel[..., 0]] > 0.5)
            label = torch.where(
                opaque & (there & (arrays["kind"][visit] != 2))[:, None], arrays["class"][visit][:, None], label
            )
            height = arrays["lines"].shape[2]
            column = ((where[..., 0] * height / TEXT_WIDTH + 1) / 2 * TEXT_WIDTH).floor().long()
            inside = (column >= 0) & (column < TEXT_WIDTH) & (where[..., 1].abs() < 0.9)
            character = arrays["columns"][visit[:, None], column.clamp(0, TEXT_WIDTH - 1)]
            written = torch.where(character >= 0, first_character + character, 0)
            label = torch.where(inside & (there & (arrays["kind"][visit] == 2))[:, None], written, label)
        return label.view(-1, 8, 2, 8, 2).transpose(2, 3).reshape(-1, 256)
