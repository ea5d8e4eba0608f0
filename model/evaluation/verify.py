"""Whether a checkpoint runs here as it was made to: our path beside transformers', and a short examination with its controls."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import CheckpointError, locate, read_config
from model.policy import AttentionPolicy
from model.serving.runner import Runner, load_runner

REFERENCES = ("qwen3_5",)
"""Families that transformers has too."""
QUESTION = "What is there to see?"
TOKENS = 49
"""Of a picture: 224×224, for patches of 16."""
FIRST = 8
"""Tokens of an answer that are compared."""
ALLOWED = {"float32": 1e-4, "bfloat16": 0.1}
"""Relative errors: of other sums in other orders, and of bfloat16's eight bits through tens of layers."""
COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220), "yellow": (235, 215, 40)}
SCENES, STEPS = 6, 4
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


@dataclass(frozen=True)
class Report:
    """What was found. `ours` and `theirs` are the first tokens of the answer to `QUESTION` about the clip."""

    model: str
    dtype: str
    parts: tuple[Part, ...]
    ours: str
    theirs: str
    marks: tuple[Mark, ...]

    @property
    def trusted(self) -> bool:
        """Whether the numbers are those of transformers."""
        return bool(self.parts) and all(part.fine for part in self.parts)

    @property
    def verdict(self) -> str:
        """One line."""
        wrong = [part.name for part in self.parts if not part.fine]
        if wrong:
            return f"Do not trust it here: {', '.join(wrong)} differ from transformers by more than may be."
        if not self.parts:
            return "Do not trust it yet: transformers has no model of this family to compare with."
        whole, asked = self.marks[0], self.marks[0].asked
        if whole.now <= asked // 2:
            return f"Its numbers are transformers', but it names {whole.now} of {asked} colours that it sees: trust no answer of it."
        return (
            f"Trust it: its numbers are transformers'; it names {whole.now} of {asked} colours that it sees, "
            f"and {whole.before} of {asked} that are past."
        )


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
    if config.family in REFERENCES:
        parts, ours, theirs = compared(runner, str(folder), steps, device, dtype)
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


@torch.no_grad()
def compared(
    runner: Runner, folder: str, steps: Sequence[list[np.ndarray]], device: str, dtype: str
) -> tuple[tuple[Part, ...], str, str]:
    """Errors of the tower, of the first token's logits after one step and after all, and both answers' first tokens."""
    from transformers import Qwen3_5ForConditionalGeneration

    from model.preprocess import patchify

    try:
        reference: Any = Qwen3_5ForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"transformers can't load {folder}: {str(error).splitlines()[0]}") from None
    reference = reference.to(device).eval()
    config, prompt, question = runner.config, runner.tokenizer.prompt, runner.tokenizer.encode_question(QUESTION)
    allowed = ALLOWED[dtype]
    runner.open(0, *steps[0][0].shape[:2])
    grid = runner.grids[0]
    patches = torch.stack([patchify(config, step, grid) for step in steps]).to(device, getattr(torch, dtype))
    seen = reference.model.visual(
        patches.flatten(0, 1), torch.tensor([[len(steps), *grid]], device=device)
    ).pooler_output
    parts = []
    encoded = [runner.encode([0], [step])[grid] for step in steps]
    if all(isinstance(each, Tensor) for each in encoded):
        ours = torch.cat([each for each in encoded if isinstance(each, Tensor)]).flatten(0, 1)
        parts.append(Part("the vision tower", relative(ours, seen), allowed))
    ids: list[int] = list(prompt.opening)
    for i, step in enumerate(steps):
        seconds = runner.moment([i, i + 0.5])
        runner.see([0], [step], [seconds])
        ids += [*prompt.before(seconds), *[config.video_token_id] * (grid[0] * grid[1] // 4), *prompt.after]
        if i in (0, len(steps) - 1):
            runner.fork(0, 1)
            _, logits = runner.read([1], [question])
            given = patches[: i + 1].flatten(0, 1), torch.tensor([[i + 1, *grid]], device=device)
            expected = said(reference, [*ids, *question], config.video_token_id, *given)
            name = f"the logits after {'a step' if i == 0 else f'{i + 1} steps'}"
            parts.append(Part(name, relative(logits[0], expected), allowed))
    spoken, answered = [int(logits[0].argmax())], [int(expected.argmax())]
    for _ in range(FIRST - 1):
        likeliest, _ = runner.read([1], [[spoken[-1]]])
        spoken.append(int(likeliest[0]))
        answered.append(int(said(reference, [*ids, *question, *answered], config.video_token_id, *given).argmax()))
    return tuple(parts), runner.tokenizer.decode(spoken), runner.tokenizer.decode(answered)


def said(reference: Any, ids: Sequence[int], video: int, patches: Tensor, grid: Tensor) -> Tensor:
    """The reference's logits float32 [vocabulary] behind a whole prompt."""
    tokens = torch.tensor([ids], device=patches.device)
    told = {"mm_token_type_ids": 2 * (tokens == video).long(), "pixel_values_videos": patches, "video_grid_thw": grid}
    logits: Tensor = reference(input_ids=tokens, **told, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    return logits


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 error."""
    theirs = theirs.float()
    return float((ours.float() - theirs).norm() / theirs.norm())


def examined(runner: Runner, shown: str, last: int | None = None) -> Mark:
    """Scenes of plain colours, of which the first comes but once; the answer is the likeliest of four words."""
    chance, right = random.Random(0), {NOW: 0, BEFORE: 0}
    words = [runner.tokenizer.encode(colour)[0] for colour in COLOURS]
    names = list(COLOURS)
    for _ in range(SCENES):
        first = chance.choice(names)
        scene = [first, *(chance.choice([name for name in names if name != first]) for _ in range(STEPS - 1))]
        runner.open(0, 224, 224)
        for i, colour in list(enumerate(scene))[-(last or STEPS) :]:
            picture = np.full((224, 224, 3), COLOURS[colour], np.uint8)
            runner.see([0], [[picture, picture]], [runner.moment([i, i + 0.5])])
        for question, answer in ((NOW, scene[-1]), (BEFORE, first)):
            runner.fork(0, 1)
            _, logits = runner.read([1], [runner.tokenizer.encode_question(question)])
            right[question] += names[int(logits[0][words].argmax())] == answer
    return Mark(shown, right[NOW], right[BEFORE], SCENES)
