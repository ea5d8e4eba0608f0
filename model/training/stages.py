"""The way from a transformer to all three members: the stages of the training, and what each goes on from (arXiv 2512.08829)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from model.config import PRESETS, AttentionPolicy, InfiniteVLConfig
from model.policy import RetrievalPolicy


class StageError(ValueError):
    """A stage that can't begin or go on; the message is one line that names what is wrong and the mend."""


SHORT = 64
"""Steps of the longest streams before the stage `long`."""
LONG_SHARE = 0.2
"""Share of long streams in the stage `long`, by frames: one of them to four."""


@dataclass(frozen=True)
class Stage:
    """`after` is the stage that it goes on from; `alone` whether it may begin from nothing. `longest` in steps of two frames."""

    name: str
    after: str | None
    alone: bool
    lr: float
    """Muon's, at nano size."""
    sharded_lr: float
    """AdamW's, at true size: the paper's."""
    longest: int
    policies: tuple[str, ...] = ("base",)
    """Attention policies that it can be told to learn with; the first unless it is told."""


MEMBERS = ("online", "offline", "window", "base")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("teacher", None, True, 8e-3, 2e-4, SHORT),
        Stage("distil", "teacher", False, 8e-3, 2e-4, SHORT),
        Stage("tune", "distil", True, 4e-3, 5e-5, SHORT, ("base", "online", "offline", "window")),
        Stage("long", "tune", False, 2e-3, 2e-5, 512, MEMBERS),
    )
}
MATCHED = 0.4
"""Part of the stage `distil` that matches layers, before the logits are imitated."""

TINY = replace(
    PRESETS["nano"],
    vision=replace(
        PRESETS["nano"].vision, depth=2, hidden_size=48, num_heads=3, intermediate_size=64, fullatt_block_indexes=(1,),
        out_hidden_size=64,
    ),
    decoder=replace(
        PRESETS["nano"].decoder, hidden_size=64, intermediate_size=96, num_hidden_layers=4, layer_types=(),
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, mrope_section=(4, 6, 6), num_linear_heads=2,
        linear_head_dim=16,
    ),
)  # fmt: skip
SIZES = {"nano": PRESETS["nano"], "tiny": TINY}
"""What is trained from nothing; the tiny one rehearses a training on a CPU."""


def policy(name: str, config: InfiniteVLConfig) -> AttentionPolicy:
    """An attention policy by its member's name, for steps of `config.tokens_per_frame`: Online has one step of sinks and a window of
    eight, a plain window as many keys, and an Offline query chooses as many as its window has. These are the paper's proportions.
    """
    sinks, window, block = config.tokens_per_frame, 8 * config.tokens_per_frame, RetrievalPolicy.block_size
    return {
        "base": AttentionPolicy(0, None, 131_072),
        "online": AttentionPolicy(sinks, window),
        "window": AttentionPolicy(0, sinks + window),
        "offline": RetrievalPolicy(window_size=window, topk=window // block, dense_len=2 * window + block),
    }[name]


def attentive(config: InfiniteVLConfig) -> InfiniteVLConfig:
    """The teacher of a hybrid: attention in every layer, all of the past in view."""
    kinds = ("attention",) * config.decoder.num_hidden_layers
    return replace(config, decoder=replace(config.decoder, layer_types=kinds), policy=policy("base", config))


def hybrid(config: InfiniteVLConfig) -> InfiniteVLConfig:
    """The student of a teacher: Gated DeltaNet in three layers of four."""
    return replace(config, decoder=replace(config.decoder, layer_types=()))


@dataclass
class Recipe:
    """A run's configuration."""

    stage: str
    minutes: float
    """Wall-clock minutes of this run, warm-up and examination included."""
    total: float | None = None
    """Minutes of learning in the whole stage, over all its runs: what the learning rate and the lengths follow. None: what this
    run has."""
    policy: str = "base"
    exam: float = 0.0
    """Seconds kept for the nano's examination at the end."""
    seed: int = 0
    steps: int = 1024
    """Frame steps (of two frames) in a batch, over all devices."""
    questions: int = 1024
    lr: float = 3e-3
    longest: int = SHORT
    """Steps of the longest streams."""
    warmup: int = 150
    """Optimizer steps of warm-up where the optimizer begins anew."""
    floor: float = 0.02
    """Learning rate at the end, as a share of `lr`."""
    guide: tuple[float, float] = (0.5, 0.2)
    """Weight of the guiding loss (what each patch shows) at the start and from a quarter of the training on."""
    mean: float = 0.99
    """Decay of the running mean of the weights, taken every 5 optimizer steps."""
    told: int = 50
    """Optimizer steps between two rows of the curve."""
    saved: float = 1.0
    """Minutes after which a run that is killed would have lost something."""
    probes: tuple[int, int] = (48, 32)
    """Scenes of 32 and of 128 frames that are asked about whenever something is saved."""
    frozen: bool = False
    """Whether the vision tower is taken as it is."""
    vocabulary: str | None = None
    """The tokenizer.json of a teacher that is not one of ours."""
    workers: int = 14
    """Processes that make lessons, for each device."""
    devices: int = 1
    sharded: bool = False
    """Whether the devices share weights and optimizer between them, instead of each having all."""


def mixture(recipe: Recipe) -> tuple[tuple[float, dict[int, float]], ...]:
    """How long streams are: up to which progress, and each length's share of the batches, which are as many frames all."""
    if recipe.stage == "long":
        few = {8: 0.2, 16: 0.25, 32: 0.25, 64: 0.3}
        many = {steps: share for steps, share in {128: 0.3, 256: 0.35, 512: 0.35}.items() if steps <= recipe.longest}
        stages = [(9.99, scaled(few, 1 - LONG_SHARE) | scaled(many, LONG_SHARE))]
    else:
        stages = [(until, {s: p for s, p in shares.items() if s <= recipe.longest}) for until, shares in GROWING]
    return tuple((until, scaled(shares, 1.0)) for until, shares in stages)


GROWING: tuple[tuple[float, dict[int, float]], ...] = (
    (0.05, {4: 0.6, 8: 0.4}),
    (0.15, {4: 0.25, 8: 0.35, 16: 0.4}),
    (0.35, {8: 0.3, 16: 0.3, 32: 0.25, 64: 0.15}),
    (0.60, {8: 0.2, 16: 0.25, 32: 0.25, 64: 0.2, 128: 0.10}),
    (9.99, {8: 0.06, 16: 0.12, 32: 0.18, 64: 0.26, 128: 0.22, 256: 0.16}),
)


def scaled(shares: dict[int, float], total: float) -> dict[int, float]:
    """The same shares, of `total` in all."""
    whole = sum(shares.values())
    return {steps: share / whole * total for steps, share in shares.items()}


@dataclass
class Standing:
    """Where a stage stands, as saved: what is needed to go on with the same curve."""

    stage: str
    policy: str
    minutes: float = 0.0
    step: int = 0
    fresh: int = 0
    """The step at which the optimizer began anew."""
    part: str = ""
    """Which objective the optimizer's moments belong to."""
    total: float | None = None
    origin: str | None = None
    """The folder that the stage began from."""
    config: dict[str, object] = field(default_factory=dict)
    recipe: dict[str, object] = field(default_factory=dict)
    since: dict[str, object] = field(default_factory=dict)
    """Sums since the curve's last row."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """By kind (weights, mean, frozen, moments) the files that belong together."""
