"""HDR and wide colours to sRGB: PQ and HLG (ITU-R BT.2100), tone-mapped by BT.2390, and the primaries of BT.2020 and P3."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BT2020, P3 = 9, 12
PQ, HLG = 16, 18
"""Primaries and transfer characteristics by the numbers of ITU-T H.273, tables 2 and 3."""
WIDE = {
    BT2020: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    P3: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
"""From linear light of wide primaries to BT.709's, which are sRGB's; all white points are D65 (BT.2087, 4)."""
LUMINANCE = (0.2627, 0.6780, 0.0593)
"""BT.2020's, of linear light."""
WHITE = 203.0
"""cd/m² of HDR's reference white (ITU-R BT.2408, table 1), which becomes SDR's white."""
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2
"""cd/m² of the display that HLG is made for, and its system gamma (BT.2100, table 5)."""
LEVELS, SHIFT = 4096, 4
"""Entries of a table, and the bits of a signal of 16 that it leaves out."""
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
"""PQ's constants (BT.2100, table 4)."""
FALL = 0.97
"""The share of a video's brightest light that is left a frame later where nothing is as bright, so that tones do not flicker."""
Floats = NDArray[np.floating]


def is_other(transfer: int, primaries: int) -> bool:
    """Whether colours are others than sRGB's."""
    return transfer in (PQ, HLG) or primaries in WIDE


def pq_light(signal: Floats) -> Floats:
    """cd/m² of PQ's signal, 0 to 1 (BT.2100, table 4: the EOTF)."""
    power = signal ** (1 / M2)
    return np.asarray(10_000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1))


def pq_signal(light: Floats) -> Floats:
    """PQ's signal of a light in cd/m²."""
    power = (light / 10_000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def hlg_scene(signal: Floats) -> Floats:
    """Scene light, 0 to 1, of HLG's signal (BT.2100, table 5: the inverse OETF)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def toned(light: Floats, peak: float) -> Floats:
    """Light in cd/m² of a video whose brightest is `peak`, on a display whose brightest is WHITE (BT.2390, 5.4.1: the EETF)."""
    if peak <= WHITE:
        return light
    top = pq_signal(np.asarray(peak))
    most = pq_signal(np.asarray(WHITE)) / top
    knee = 1.5 * most - 0.5
    level = np.minimum(pq_signal(light) / top, 1)
    t = (level - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return np.where(level < knee, light, pq_light(np.where(level < knee, level, spline) * top))


def srgb_light(signal: Floats) -> Floats:
    """Linear light of sRGB's signal, both 0 to 1 (IEC 61966-2-1)."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def srgb_signal(light: Floats) -> Floats:
    """sRGB's signal of linear light."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


class Mapping:
    """Makes sRGB of one video's colours, by tables. Not thread-safe.

    The tones follow the brightest light that the video shows, which rises at once and falls slowly, so that what stays
    below SDR's white keeps its tones. Light is mapped by its brightest channel, so that hues stay.
    """

    def __init__(self, transfer: int, primaries: int) -> None:
        self.transfer, self.primaries = transfer, primaries
        self.matrix = WIDE.get(primaries, WIDE[BT2020])
        self.peak = 1.0
        """The brightest light that is known, as a share of white."""
        light = {PQ: pq_light, HLG: hlg_scene}.get(transfer, srgb_light)(np.linspace(0, 1, LEVELS))
        self.light = (light / WHITE if transfer == PQ else light).astype(np.float32)
        self.levels = np.round(255 * srgb_signal(np.linspace(0, 1, LEVELS) ** 2)).astype(np.uint8)
        """By the root of the light, as dark tones are apart by less light than bright ones."""

    def apply(self, pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] sRGB of uint16 [H, W, 3] signals of the full range."""
        red, green, blue = (self.light[(pixels[..., n] >> SHIFT).astype(np.intp)] for n in range(3))
        share: NDArray[np.float32] | None = None
        if self.transfer == HLG:
            glow = sum(part * np.float32(weight) for part, weight in zip((red, green, blue), LUMINANCE, strict=True))
            share = np.float32(HLG_PEAK / WHITE) * np.maximum(glow, np.float32(1e-9)) ** np.float32(HLG_GAMMA - 1)
        if self.transfer in (PQ, HLG):
            brightest = np.maximum(np.maximum(red, green), blue)
            if share is not None:
                brightest *= share
            self.peak = max(float(brightest.max()), self.peak * FALL, 1.0)
            if self.peak > 1:
                top = np.maximum(np.linspace(0, 1, LEVELS) ** 2 * self.peak * WHITE, 1e-6)
                tones = (toned(top, self.peak * WHITE) / top).astype(np.float32)
                tone = tones[(np.sqrt(brightest / np.float32(self.peak)) * np.float32(LEVELS - 1)).astype(np.intp)]
                share = tone if share is None else share * tone
        out = np.empty(pixels.shape, np.uint8)
        for n, weights in enumerate(self.matrix):
            light = red * np.float32(weights[0])
            light += green * np.float32(weights[1])
            light += blue * np.float32(weights[2])
            if share is not None:
                light *= share
            np.clip(light, 0, 1, out=light)
            np.sqrt(light, out=light)
            light *= np.float32(LEVELS - 1)
            out[..., n] = self.levels[np.rint(light, out=light).astype(np.intp)]
        return out
