"""What runs a model for an engine: frames and questions in, tokens out, over a fixed pool of slots. Owned by one thread."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import CheckpointError, load_checkpoint, locate
from model.config import PRESETS, AttentionPolicy, ConfigError
from model.families.family import Prompt
from model.families.infinitevl import InfiniteVL
from model.policy import RetrievalPolicy
from model.preprocess import choose_grid
from model.serving import int8
from model.serving.backends import POWERS, Backend, Eager, Encoding, Finite, Grid, Pictures, Together, Traced
from model.serving.calibration import Calibration, read_calibration
from model.serving.capacity import capacity
from model.serving.grammar import Constraint, Grammars, constrained
from model.serving.picture_size import affordable_tokens
from model.serving.quantize import Precision
from model.serving.random_weights import random_config, random_model, random_vocabulary
from model.serving.sampling import Sampling, draw
from model.serving.streams import BESIDE, in_line
from model.serving.traced import TRACEABLE
from model.serving.yes_no import YesNo, YesNoReader
from model.state import Snapshot, StreamState
from model.tokenizer import Tokenizer

NANO = Path(__file__).parent.parent / "nano"
"""The embedded default: a checkpoint folder like any other."""


Encoded = dict[Grid, Encoding]
"""A step's pictures by their streams' grid, as `encode` leaves them to `see`."""
SAMPLED = 64
"""Values of each weight that its model's fingerprint is made of."""
DECODE_SIZES = (3, *POWERS)
"""Answers that speak at once whose step is worth a try: between 4 and 8 costs hardly differ."""


class Sizes(NamedTuple):
    """Sizes of step that have a cost of their own, the largest first: what memory they take, the smaller ones use again."""

    frames: tuple[int, ...]
    """Streams in a frame step."""
    question: tuple[int, ...]
    """Tokens read at once."""
    decode: tuple[int, ...]
    """Answers that speak at once."""
    looks: tuple[int, ...] = ()
    """Questions that are judged at once."""


class Runner:
    """A model with its pool of slots. A slot holds one stream, or the fork of one in which a question is answered.

    `trained` is False where the weights are random; `state_bytes` is what one slot keeps, for ever. Raises CapacityError where the
    device's free memory does not hold the slots.
    """

    largest_batch = 8
    """Streams in one frame step at most."""

    def __init__(
        self,
        name: str,
        model: InfiniteVL,
        tokenizer: Tokenizer,
        slots: int,
        trained: bool,
        precision: Precision = "model",
    ) -> None:
        weights = model.model.embed_tokens.weight
        self.name, self.trained, self.slots, self.precision = name, trained, slots, precision
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.device, self.dtype = weights.device, weights.dtype
        self.stream = torch.cuda.current_stream(self.device) if weights.is_cuda else None
        """That of the thread that makes it, where all its steps are in line."""
        self.state_bytes = StreamState.allocate(model.config, 1, "meta", self.dtype).bytes_per_slot
        self.fingerprint = fingerprint(model)
        """Differs where a snapshot of the one model means nothing to the other."""
        serve, spare = prepare(model, tokenizer.prompt, precision)
        if (found := capacity(self.device, self.state_bytes)) is not None:
            found.check(slots)
        self.state = StreamState.allocate(model.config, slots + spare, self.device, self.dtype)
        self.backend = serve(self.state)
        self.grids: dict[int, Grid] = {}
        self.generators: dict[int, torch.Generator | None] = {}
        self.spoken: dict[int, set[int]] = {}
        self.grammars = Grammars(tokenizer, model.config.decoder.vocab_size)
        self.calibration = Calibration()
        """Of `judge`; to be set before its first call."""

    @property
    def frames_per_step(self) -> int:
        return self.config.frames_per_step

    @property
    def picture_side(self) -> int:
        """Pixels of a square picture's side, at most."""
        vision = self.config.vision
        return int(self.config.tokens_per_frame**0.5) * vision.spatial_merge_size * vision.patch_size

    @property
    def trained_rate(self) -> float | None:
        """Frames a second that the model was trained with; None where it is any."""
        return self.config.frames_per_second

    @property
    def tokens_per_step(self) -> int:
        return self.config.tokens_per_frame

    @property
    def context(self) -> int | None:
        """Tokens after which a model with full attention forgets the oldest; None where a window does that by design."""
        policy = self.config.policy
        return policy.context if policy.window is None else None

    @property
    def more_slots(self) -> int | None:
        """Slots that the device's free memory would hold beyond these; None where that is not known."""
        more = capacity(self.device, self.state_bytes)
        return None if more is None else more.slots

    def release(self) -> None:
        """Gives the memory back; what stays are the facts about the model."""
        del self.model, self.state, self.backend

    @torch.inference_mode()
    def open(self, slot: int, height: int, width: int) -> None:
        """Begins a stream in `slot`, whose frames' grid is chosen from a picture of `height` × `width` pixels and stays."""
        self.state.reset(slot)
        self.grids[slot] = choose_grid(self.config, height, width)
        self.backend.open(slot)

    def sizes(self, streams: int, answers: int) -> Sizes:
        """What sizes of step are worth a try before the first frame, with so many slots for streams and answers."""
        return Sizes(
            frames=tuple(n for n in range(min(streams, self.largest_batch), 0, -1) if n in self.backend.frame_sizes),
            question=(256, 128, 64, 32, 16),
            decode=tuple(n for n in range(answers, 0, -1) if n in DECODE_SIZES),
            looks=tuple(n for n in range(answers, 0, -1) if n in POWERS),
        )

    def moment(self, times: Sequence[float]) -> float:
        """The stream time of a step of frames at `times`, oldest first: the newest's, or their mean where the text tells it."""
        return times[-1] if self.config.positions == "clock" else sum(times) / len(times)

    def by_grid(self, slots: Sequence[int]) -> dict[Grid, list[int]]:
        """Which of `slots`, by their places in it, hold streams of one grid."""
        batches: dict[Grid, list[int]] = defaultdict(list)
        for i, slot in enumerate(slots):
            batches[self.grids[slot]].append(i)
        return batches

    @torch.inference_mode()
    def encode(self, slots: Sequence[int], frames: Pictures) -> Encoded:
        """What of `see` needs no state: the vision tower's part. It touches no slot, so that any thread may call it."""
        with in_line(self.stream):
            return {
                grid: self.backend.encode([frames[i] for i in rows], grid) for grid, rows in self.by_grid(slots).items()
            }

    @torch.inference_mode()
    def see(
        self, slots: Sequence[int], frames: Pictures, seconds: Sequence[float], encoded: Encoded | None = None
    ) -> list[bool]:
        """One step of a batch of streams: `frames[i]` holds 1 to `frames_per_step` uint8 H×W×3 pictures of `slots[i]`.

        A lone picture is repeated. `seconds[i]` is the stream time of the step (see `moment`). `encoded` is what `encode` made of the same
        slots and frames, where it has been called. Returns, for each stream, whether its state is still finite: where it is
        not, the slot must be opened again.
        """
        return self.launch(slots, frames, seconds, encoded)()

    @torch.inference_mode()
    def launch(
        self, slots: Sequence[int], frames: Pictures, seconds: Sequence[float], encoded: Encoded | None = None
    ) -> Finite:
        """As `see`, but where the backend's `ingest` only begins a step this one has only begun.

        What is returned waits for its end. Until it has been called nothing may be but `encode`, and `launch` once more.
        """
        finite = [True] * len(slots)
        if encoded is None:
            encoded = self.encode(slots, frames)
        told: Finite = list
        places: list[int] = []

        def end() -> list[bool]:
            for i, fine in zip(places, told(), strict=True):
                finite[i] = fine
            return finite

        for grid, rows in self.by_grid(slots).items():
            end()
            told = self.backend.ingest([slots[i] for i in rows], encoded[grid], [seconds[i] for i in rows], grid)
            places = rows
        return end

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Reads each slot's tokens into it; returns the likeliest next ones int64 [batch], and all logits."""
        return self.backend.read(slots, tokens)

    @torch.inference_mode()
    def prefill(
        self,
        slot: int,
        tokens: Sequence[int],
        sampling: Sampling = Sampling(),  # noqa: B008
        constraint: Constraint | None = None,
    ) -> int:
        """Reads a question's tokens into a forked slot; returns the answer's first token, one that `constraint` allows."""
        _, logits = self.read([slot], [tokens])
        self.generators[slot], self.spoken[slot] = sampling.generator(self.device), set()
        return draw(constrained(logits[0], constraint), sampling, self.generators[slot])

    @torch.inference_mode()
    def decode(
        self,
        slots: Sequence[int],
        tokens: Sequence[int],
        samplings: Sequence[Sampling],
        constraints: Sequence[Constraint | None] = (),
    ) -> list[int]:
        """Reads one token into each of `slots`; returns the one that follows in each, allowed by its constraint where it has one."""
        likeliest, logits = self.read(slots, [[token] for token in tokens])
        for slot, token in zip(slots, tokens, strict=True):
            self.spoken[slot].add(token)
        plain = not any(constraints) and not any(how.presence_penalty for how in samplings)
        if plain and all(self.generators[slot] is None for slot in slots):
            greedy: list[int] = likeliest.tolist()
            return greedy
        limits = constraints or [None] * len(slots)
        return [
            draw(constrained(row, limit), how, self.generators[slot], self.spoken[slot])
            for row, how, slot, limit in zip(logits, samplings, slots, limits, strict=True)
        ]

    @torch.inference_mode()
    def judge(
        self,
        source: int,
        slots: Sequence[int],
        questions: Sequence[Sequence[int]],
        parts: Sequence[np.ndarray | None] = (),
    ) -> list[YesNo]:
        """How likely yes is to each of `questions`, whole prompts, of what `source` has seen: one batch, and nothing is spoken.

        `slots`, one a question, are made forks of `source` for it, and are anybody's afterwards. Raises ConfigError where the
        vocabulary knows no yes or no.

        A question with a picture in `parts`, uint8 [H, W, 3], is asked of that alone, in a state that has seen nothing else.
        """
        shown = {slot: part for slot, part in zip(slots, parts or [None] * len(slots), strict=True) if part is not None}
        for slot in slots:
            if slot in shown:
                self.open(slot, *shown[slot].shape[:2])
            else:
                self.fork(source, slot)
        opened = list(shown)
        for i in range(0, len(opened), self.largest_batch):
            few = opened[i : i + self.largest_batch]
            self.see(few, [[shown[slot]] for slot in few], [0.0] * len(few))
        _, logits = self.read(slots, questions)
        return self.yes_no.read(logits)

    @cached_property
    def yes_no(self) -> YesNoReader:
        """What reads yes or no out of logits. Raises ConfigError as `judge`."""
        return YesNoReader(self.tokenizer, self.config.decoder.vocab_size, self.device, self.calibration)

    @torch.inference_mode()
    def fork(self, source: int, target: int) -> None:
        """Makes `target` a copy of `source`, which is only read."""
        self.state.fork(source, target)
        self.grids[target] = self.grids[source]

    @torch.inference_mode()
    def reset(self, slot: int) -> None:
        """Empties a slot."""
        self.state.reset(slot)
        self.grids.pop(slot, None)

    @torch.inference_mode()
    def snapshot(self, slot: int) -> Snapshot:
        """One slot's state on the CPU, its grid with it."""
        return self.state.snapshot(slot) | {"grid": torch.tensor(self.grids[slot])}

    @torch.inference_mode()
    def copy(self, slot: int) -> Callable[[], Snapshot]:
        """Begins a snapshot, which any thread may take to the CPU: calling what is returned waits for that and gives it.

        On a GPU the slot is copied there first, in line with the steps; the way to the CPU goes beside them.
        """
        grid = torch.tensor(self.grids[slot])
        parts = {name: part.detach().clone() for name, part in self.state.kept(slot).items()}
        if self.device.type != "cuda":
            return lambda: parts | {"grid": grid}
        copied = torch.cuda.current_stream(self.device).record_event()

        def fetch() -> Snapshot:
            beside, out = torch.cuda.Stream(self.device, BESIDE), {"grid": grid}
            with torch.cuda.stream(beside), torch.inference_mode():
                beside.wait_event(copied)
                for name, part in parts.items():
                    out[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
                    out[name].copy_(part, non_blocking=True)
            beside.synchronize()
            return out

        return fetch

    @torch.inference_mode()
    def stage(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot on the device, from where `restore` takes it in no time; any thread may call it."""
        if self.stream is None:
            return snapshot
        beside = torch.cuda.Stream(self.device, BESIDE)
        with torch.cuda.stream(beside):
            staged = {name: part.to(self.device) for name, part in snapshot.items() if name != "grid"}
        beside.synchronize()
        for part in staged.values():
            part.record_stream(self.stream)  # where `restore` reads it, perhaps longer than anybody holds it
        return staged | {"grid": snapshot["grid"]}

    @torch.inference_mode()
    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Puts a snapshot into a slot.

        Raises ConfigError where it was not taken by a runner of a model of these sizes and policy; the slot is then as it was.
        """
        if "grid" not in snapshot:
            raise ConfigError("snapshot's grid is missing: restore one that a runner took")
        self.state.restore(slot, snapshot)
        height, width = snapshot["grid"].tolist()
        self.grids[slot] = height, width


@torch.inference_mode()
def fingerprint(model: InfiniteVL) -> str:
    """A digest of the sizes, the policy and some of every weight, 32 hexadecimal digits."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, weight in sorted(model.state_dict().items()):
        some = weight.flatten()[:: max(1, weight.numel() // SAMPLED)][:SAMPLED].contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(some.view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def prepare(
    model: InfiniteVL, prompt: Prompt, precision: Precision = "model"
) -> tuple[Callable[[StreamState], Backend], int]:
    """Puts the weights into the form in which their device serves them fastest.

    Returns what makes the backend over a pool, and the slots that the pool must have beyond those in use.
    """
    paged = isinstance(model.config.policy, RetrievalPolicy)
    if paged and precision == "fp8":
        raise ConfigError("dtype 'fp8' is not to be had for attention that retrieves yet: choose bfloat16")
    if model.model.embed_tokens.weight.device.type != "cuda":
        if precision == "int8":
            int8.to_int8(model)
        return partial(Together if paged else Traced if TRACEABLE else Eager, model, prompt), 0
    from model.serving.cuda_graphs import Graphs
    from model.serving.fused import FastInfiniteVL
    from model.serving.growing import Growing, suits

    if paged and not suits(model.config):
        return partial(Eager, model, prompt), 0
    fast = FastInfiniteVL(model, precision)
    torch.cuda.empty_cache()
    if paged:
        return partial(Growing, fast, prompt), 0
    return partial(Graphs, fast, prompt), 1


def load_runner(
    name: str = "nano",
    *,
    device: str = "cpu",
    dtype: str = "float32",
    slots: int = 16,
    random_weights: bool = False,
    policy: AttentionPolicy | None = None,
    position_horizon: float | None = None,
    frames_per_step: int | None = None,
    picture_tokens: int | None = None,
) -> Runner:
    """Loads a preset ("nano", "4b"), a checkpoint folder or a Hugging Face repository ("owner/name") onto `device`.

    `dtype` is "float32", "bfloat16" or, on CUDA, "fp8": bfloat16 with the big products in fp8; on a CPU "int8": float32 with the
    products in int8 that are faster so.

    A checkpoint runs with the attention it was trained with unless `policy` says otherwise, and with pictures of at most its
    own number of tokens, or `picture_tokens`. `random_weights` (seeded) is
    for measurements; the nano falls back to it while no trained weights are packaged. Raises CheckpointError, ConfigError,
    CapacityError where the device's free memory does not hold the slots.
    """
    choices: dict[str, Any] = {
        "policy": policy,
        "position_horizon": position_horizon,
        "frames_per_step": frames_per_step,
        "tokens_per_frame": picture_tokens,
    }
    choices = {key: value for key, value in choices.items() if value is not None}
    precision: Precision = "model"
    if dtype == "fp8":
        if not device.startswith("cuda"):
            raise ConfigError(f"dtype 'fp8' needs a CUDA device, not {device!r}: choose float32, bfloat16 or int8")
        precision, dtype = "fp8", "bfloat16"
    elif dtype == "int8":
        if device != "cpu":
            raise ConfigError(f"dtype 'int8' needs the CPU, not {device!r}: choose bfloat16 or fp8")
        int8.check()
        precision, dtype = "int8", "float32"
    kind = getattr(torch, dtype)
    packaged = (NANO / "config.json").is_file() and any(NANO.glob("*.safetensors"))
    if name in PRESETS and (random_weights or (name == "nano" and not packaged)):
        config = random_config(name, **choices)
        tokenizer = Tokenizer(random_vocabulary(NANO / "tokenizer.json", config), config)
        config = tokenizer.fitted(config)
        model = sized(random_model(config, device, kind), picture_tokens, precision)
        return Runner(name, model, tokenizer, slots, trained=False, precision=precision)
    if name in PRESETS and name != "nano":
        raise CheckpointError(
            f"preset {name!r} has no weights of its own: name a checkpoint folder or repository, or ask for random weights"
        )
    folder = NANO if name == "nano" else locate(name)
    model, tokenizer = load_checkpoint(folder, device=device, dtype=kind, **choices)
    model.eval().fuse()
    runner = Runner(name, sized(model, picture_tokens, precision), tokenizer, slots, trained=True, precision=precision)
    runner.calibration = read_calibration(folder)
    return runner


def sized(model: InfiniteVL, picture_tokens: int | None, precision: Precision) -> InfiniteVL:
    """The model with pictures of a size that its CPU has time for, where none is asked for."""
    if picture_tokens is None and model.model.embed_tokens.weight.device.type == "cpu":
        model.config = replace(model.config, tokens_per_frame=affordable_tokens(model, precision))
    return model
