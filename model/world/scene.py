"""What a scene is: things that come and go before a camera, in every frame of a stream. `generate` draws scenes, `render` paints them.

Coordinates: a picture is the square [-1, 1]² (x right, y down) whatever the camera's aspect ratio, as the model sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.world.objects import Thing

Split = Literal["train", "test"]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SLOTS = 4
"""At most this many things are in a frame at once; a higher slot hides a lower one."""
LETTERS = 6
"""The longest number or word."""
PROCEDURAL = 256
"""Painted backgrounds, of which the last `HELD_OUT_PROCEDURAL` are kept for the evaluation."""
HELD_OUT_PROCEDURAL = 32
CLEAR, ABSENT = 0.6, 0.05
"""A thing is clearly seen where this part of it shows, and not seen where less than `ABSENT` does."""
HORIZON = 60.0
"""Seconds at which a stream's shown age saturates (the nano's `position_horizon`)."""
LENGTHS = (0.6, 0.25, 0.15)
"""Shares of four, five and six letters among the words that are no words."""
WORDY = 0.4
"""Share of words among numbers and words."""
KNOWN = 0.5
"""Share of the list's words among words; the others are any letters."""
SIZES = (0.10, 0.24)
"""Half the height of numbers and words in the picture, the least and the most."""


@dataclass(frozen=True)
class Gallery:
    """Which fonts, stills and video clips (of `clip` frames) of each split the assets hold.

    `advances` float32 [fonts, CHARACTERS] is how wide a character is, in heights of a line.
    """

    fonts: dict[Split, range]
    stills: dict[Split, range]
    clips: dict[Split, range]
    clip: int
    advances: Floats


@dataclass
class Visit:
    """One thing's stay in a slot, frames `start` to `stop` (not included).

    `visible` [steps] is the part that shows in each step's last frame, `centre` [frames of the stay, 2] where it is.
    """

    thing: Thing
    slot: int
    start: int
    stop: int
    half: tuple[float, float]
    centre: Floats
    look: Look
    visible: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def first(self) -> int:
        """The first step in which it is clearly seen."""
        return int(np.argmax(self.visible >= CLEAR))

    @property
    def last(self) -> int:
        """The last such step."""
        return len(self.visible) - 1 - int(np.argmax(self.visible[::-1] >= CLEAR))


@dataclass(frozen=True)
class Look:
    """How a visit is painted: `size` is half its height, `tint` and `edge` are colours, `plate` puts text on a board.

    Its width is `stretch` times what is usual, and its top is `slant` half heights right of its middle.
    """

    size: float
    stretch: float
    slant: float
    angle: float
    flip: bool
    tint: tuple[float, ...]
    edge: tuple[float, ...]
    plate: bool
    font: int
    soft: float


@dataclass
class Scene:
    """A stream of `steps` steps of two frames.

    `seconds` float64 [steps] is the stream time of each step's last frame; `camera` [frames, 3, 3] maps the world to the
    picture; `ground` [frames] indexes the background and `ground_matrix` [frames, 3, 3] maps the picture to it;
    `light` [frames, 6] is each channel's gain and offset of the background, `exposure` [frames, 3] the picture's gain, and
    `film` [4] its gamma, noise, softness and compression.
    """

    steps: int
    aspect: float
    visits: list[Visit]
    seconds: NDArray[np.float64]
    camera: Floats
    ground: Integers
    ground_matrix: Floats
    light: Floats
    exposure: Floats
    film: Floats
    early: bool


@dataclass(frozen=True)
class Profile:
    """What scenes are drawn: `things` at most (None: as the length allows), `text` the share of numbers and words.

    `early` is the share of streams whose first step is not empty, `real` whether backgrounds are photographs and video,
    `gap` leaves the last so many steps empty. `slow` is the share of things that creep, `again` that of visits by something
    that was there before, `late` that of streams in which nothing comes for up to `LEAD` of their length, `cut` that of streams
    whose background becomes another at once; `lengths`, `words`, `known` and `sizes` are as `LENGTHS`, `WORDY`, `KNOWN` and
    `SIZES` are where nothing is said.
    """

    things: tuple[int, int] | None = None
    text: float = 0.3
    early: float = 0.15
    real: bool = False
    gap: int = 0
    slow: float = 0.0
    again: float = 0.1
    late: float = 0.0
    cut: float = 0.0
    lengths: tuple[float, float, float] = LENGTHS
    words: float = WORDY
    known: float = KNOWN
    sizes: tuple[float, float] = SIZES
