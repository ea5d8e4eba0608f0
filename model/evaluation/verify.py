"""Whether a checkpoint runs here as it was made to: our path beside transformers', and a short examination with its controls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.checkpoint import locate, read_config
from model.config import InfiniteVLConfig
from model.evaluation.reference import REFERENCES, reference
from model.policy import AttentionPolicy
from model.serving.runner import Runner, load_runner

QUESTION = "What is there to see?"
TOKENS = 49
"""Of a picture: 224×224, for patches of 16."""
TOWER = "the vision tower"
REST = 200
"""More tokens than a prompt of a video has beside its pictures, and its answer."""
FIRST = 8
"""Tokens of an answer that are compared."""
ALLOWED = 1e-4
"""Relative error in float32, of other sums in other orders."""
TIMES_PLAIN = 2.0
"""What bfloat16 may be off, in errors of transformers' own bfloat16 beside its float32 on the same input."""
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "yellow": (235, 215, 40)}
SCENES, STEPS = 12, 4
"""Twelve questions tell eight right answers from guesses, of which three are right: see `Mark.luck`."""
UNLIKELY = 0.01
"""How often mere guesses may pass the examination."""
NOW = "Which colour does the picture have now? Answer with one word: red, green, blue or yellow."
BEFORE = "Which colour did the picture have at the beginning? Answer with one word: red, green, blue or yellow."
LAST = 2
"""Steps of the control, which hold the last four frames."""


@dataclass(frozen=True)
class Part:
    """A relative L2 error beside transformers, and what it may be."""

    name: str
    error: float
    allowed: float

    @property
    def fine(self) -> bool:
        """Not where it is no number."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Mark:
    """Right answers of `asked`, with what the model was shown: about what is seen now, and what came before the last four frames."""

    shown: str
    now: int
    before: int
    asked: int

    def luck(self, right: int) -> float:
        """How likely guesses are to give so many right answers or more, a binomial's upper tail."""
        share, n = 1 / len(COLOURS), self.asked
        return sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(right, n + 1))

    @property
    def sees(self) -> bool:
        """Whether it names what is seen now better than guesses would."""
        return self.luck(self.now) <= UNLIKELY

    @property
    def remembers(self) -> bool:
        """Whether it names what is past better than guesses would."""
        return self.luck(self.before) <= UNLIKELY


@dataclass(frozen=True)
class Report:
    """What was found. `ours` and `theirs` are the first tokens of the answer to `QUESTION` about the clip.

    There are no marks where the numbers are wrong already; the first of them is the whole stream's.
    """

    model: str
    dtype: str
    parts: tuple[Part, ...]
    ours: str
    theirs: str
    marks: tuple[Mark, ...]

    @property
    def exact(self) -> bool:
        """Whether the numbers are those of transformers."""
        return bool(self.parts) and all(part.fine for part in self.parts)

    @property
    def trusted(self) -> bool:
        """Whether the numbers are those of transformers, and the examination tells its answers from guesses, of now and of the past."""
        return self.exact and bool(self.marks) and self.marks[0].sees and self.marks[0].remembers

    @property
    def verdict(self) -> str:
        """One line."""
        wrong = [part.name for part in self.parts if not part.fine]
        if wrong:
            return f"Do not trust it here: {', '.join(wrong)} differ from transformers by more than may be."
        whole = self.marks[0]
        now = f"{whole.now} of {whole.asked} colours that it sees"
        past = f"{whole.before} of {whole.asked} that are past"
        if not self.parts:
            return (
                "Do not trust it yet: transformers has nothing to compare it with. "
                f"It names {now}, and {past}; guesses name {whole.asked // len(COLOURS)}."
            )
        if not whole.sees:
            return (
                f"Do not trust its answers: it computes what transformers does, but the examination can't tell them from guesses: "
                f"it names {now}, and guesses do as well {whole.luck(whole.now):.0%} of the time."
            )
        if not whole.remembers:
            return (
                f"Do not trust what it says of the past: it computes what transformers does and names {now}, but {past}, "
                f"and guesses do as well {whole.luck(whole.before):.0%} of the time."
            )
        return f"Trust it: it computes what transformers does; it names {now}, and {past}; guesses name {whole.asked // len(COLOURS)}."


def verify(name: str, clip: Sequence[np.ndarray], *, device: str = "cpu", dtype: str = "float32") -> Report:
    """Runs a checkpoint folder or repository on `clip`, uint8 H×W×3 pictures half a second apart, and examines it.

    Raises CheckpointError, ConfigError, CapacityError, ModuleNotFoundError without transformers.
    """
    folder = locate(name)
    config = read_config(folder)
    steps = [list(clip[i : i + 2]) for i in range(0, len(clip) - 1, 2)]
    choices: dict[str, Any] = {"device": device, "dtype": dtype, "slots": 3, "picture_tokens": TOKENS}
    runner = load_runner(str(folder), **choices)
    parts: tuple[Part, ...] = ()
    ours = theirs = ""
    if comparable(config, len(steps)):
        parts, ours, theirs = compared(runner, str(folder), steps, device, dtype)
        if not all(part.fine for part in parts):
            runner.release()
            return Report(name, dtype, parts, ours, theirs, ())
    step = runner.config.step_tokens
    marks = [examined(runner, "the whole stream"), examined(runner, "the last four frames", LAST)]
    policies = {
        "the whole stream, attention over its last two steps": AttentionPolicy(sinks=4, window=LAST * step),
        "the whole stream, full attention": AttentionPolicy(0, None, context=(STEPS + 2) * step + 512),
    }
    runner.release()
    for shown, policy in policies.items():
        runner = load_runner(str(folder), **choices, policy=policy)
        marks.append(examined(runner, shown))
        runner.release()
    return Report(name, dtype, parts, ours, theirs, tuple(marks))


def comparable(config: InfiniteVLConfig, steps: int) -> bool:
    """Whether transformers computes a prompt of so many pictures alike: no tower there has the nano's table of places."""
    window = config.policy.window or config.policy.context
    alike = config.family != "infinitevl" or not config.vision.position_table
    return alike and config.family in REFERENCES and steps * TOKENS + REST <= window


class Computed(NamedTuple):
    """What one side made of the clip: the parts by name, and the first tokens of its answer."""

    parts: dict[str, Tensor]
    tokens: list[int]


def compared(
    runner: Runner, folder: str, steps: Sequence[list[np.ndarray]], device: str, dtype: str
) -> tuple[tuple[Part, ...], str, str]:
    """Errors beside transformers' float32 of the tower and of the first token's logits; both answers' first tokens.

    bfloat16 is held to what transformers' own bfloat16 is off, as no bound fits every depth.
    """
    ours = here(runner, steps)
    exact = there(runner, folder, steps, device, torch.float32)
    allowed = dict.fromkeys(ours.parts, ALLOWED)
    if dtype != "float32":
        plain = there(runner, folder, steps, device, getattr(torch, dtype))
        allowed = {name: TIMES_PLAIN * relative(plain.parts[name], exact.parts[name]) for name in ours.parts}
    parts = (Part(name, relative(part, exact.parts[name]), allowed[name]) for name, part in ours.parts.items())
    return tuple(parts), runner.tokenizer.decode(ours.tokens), runner.tokenizer.decode(exact.tokens)


def here(runner: Runner, steps: Sequence[list[np.ndarray]]) -> Computed:
    """Our path, a step at a time."""
    question = runner.tokenizer.encode_question(QUESTION)
    runner.open(0, *steps[0][0].shape[:2])
    encoded = [runner.encode([0], [step])[runner.grids[0]] for step in steps]
    parts = {}
    if all(isinstance(each, Tensor) for each in encoded):
        parts[TOWER] = torch.cat([each for each in encoded if isinstance(each, Tensor)]).flatten(0, 1)
    for i, step in enumerate(steps):
        runner.see([0], [step], [runner.moment([i, i + 0.5])])
        if i in (0, len(steps) - 1):
            runner.fork(0, 1)
            _, logits = runner.read([1], [question])
            parts[logits_after(i + 1)] = logits[0].float()
    tokens = [int(logits[0].argmax())]
    for _ in range(FIRST - 1):
        likeliest, _ = runner.read([1], [[tokens[-1]]])
        tokens.append(int(likeliest[0]))
    return Computed(parts, tokens)


@torch.no_grad()
def there(runner: Runner, folder: str, steps: Sequence[list[np.ndarray]], device: str, dtype: torch.dtype) -> Computed:
    """transformers' path in `dtype`, each prompt whole. Raises CheckpointError."""
    from model.preprocess import patchify

    twin = reference(runner.config, Path(folder), device, dtype)
    config, prompt, grid = runner.config, runner.tokenizer.prompt, runner.grids[0]
    question = runner.tokenizer.encode_question(QUESTION)
    patches = torch.stack([patchify(config, step, grid) for step in steps]).to(device, dtype)
    whole = torch.tensor([[len(steps), *grid]], device=device)
    parts = {TOWER: twin.model.visual(patches.flatten(0, 1), whole).pooler_output}
    ids: list[int] = list(prompt.opening)
    for i in range(len(steps)):
        seconds = runner.moment([i, i + 0.5])
        ids += [*prompt.before(seconds), *[config.video_token_id] * (grid[0] * grid[1] // 4), *prompt.after]
        if i in (0, len(steps) - 1):
            given = patches[: i + 1].flatten(0, 1), torch.tensor([[i + 1, *grid]], device=device)
            parts[logits_after(i + 1)] = said(twin, [*ids, *question], config.video_token_id, *given)
    tokens = [int(parts[logits_after(len(steps))].argmax())]
    for _ in range(FIRST - 1):
        tokens.append(int(said(twin, [*ids, *question, *tokens], config.video_token_id, *given).argmax()))
    return Computed(parts, tokens)


def logits_after(steps: int) -> str:
    """A part's name."""
    return f"the logits after {'a step' if steps == 1 else f'{steps} steps'}"


def said(twin: Any, ids: Sequence[int], video: int, patches: Tensor, grid: Tensor) -> Tensor:
    """transformers' logits float32 [vocabulary] behind a whole prompt."""
    tokens = torch.tensor([ids], device=patches.device)
    told: dict[str, Any] = {
        "mm_token_type_ids": 2 * (tokens == video).long(),
        "pixel_values_videos": patches,
        "video_grid_thw": grid,
    }
    if twin.config.model_type == "qwen2_5_vl":  # its times come beside the prompt, not in it
        told["second_per_grid_ts"] = [1.0]
    logits: Tensor = twin(input_ids=tokens, **told, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return logits


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 error."""
    theirs = theirs.float()
    return float((ours.float() - theirs).norm() / theirs.norm())


def examined(runner: Runner, shown: str, last: int | None = None) -> Mark:
    """Scenes of plain colours; the answer is the likeliest of four words.

    Each colour is the right answer equally often, and none tells of another, so that whoever says but one word or knows only the
    present gets what guesses get. A terminal is shown how far it is: minutes, on a CPU.
    """
    right = {NOW: 0, BEFORE: 0}
    words = [runner.tokenizer.encode(colour)[0] for colour in COLOURS]
    names = list(COLOURS)
    for scene in tqdm(scenes(), desc=shown, unit="scene", leave=False, disable=None):
        runner.open(0, 224, 224)
        for i, colour in list(enumerate(scene))[-(last or STEPS) :]:
            picture = np.full((224, 224, 3), COLOURS[colour], np.uint8)
            runner.see([0], [[picture, picture]], [runner.moment([i, i + 0.5])])
        for question, answer in ((NOW, scene[-1]), (BEFORE, scene[0])):
            runner.fork(0, 1)
            _, logits = runner.read([1], [runner.tokenizer.encode_question(question)])
            right[question] += names[int(logits[0][words].argmax())] == answer
    return Mark(shown, right[NOW], right[BEFORE], SCENES)


def scenes() -> list[tuple[str, ...]]:
    """Colours of `SCENES` scenes: every `STEPS`th is shuffled on its own."""
    chance, columns = random.Random(0), []
    for _ in range(STEPS):
        column = [list(COLOURS)[i % len(COLOURS)] for i in range(SCENES)]
        chance.shuffle(column)
        columns.append(column)
    return list(zip(*columns, strict=True))
