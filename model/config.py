"""Sizes and policies of an InfiniteVL model, its presets, and their Hugging Face `config.json` form."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from model.policy import FULL as FULL
from model.policy import AttentionPolicy as AttentionPolicy
from model.policy import ConfigError as ConfigError
from model.policy import RetrievalPolicy

ARCHITECTURE = "InfiniteVLForConditionalGeneration"
MOST_LAYERS = 1_000
"""Of a tower or a decoder: a checkpoint that says more is damaged, and its modules would fill all memory."""


def check_layers(name: str, count: int) -> None:
    """Raises ConfigError where a checkpoint can't mean so many layers."""
    if count > MOST_LAYERS:
        raise ConfigError(f"{name} {count} must be at most {MOST_LAYERS}: download config.json again")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (Qwen2.5-VL's): lengths in pixels, patches or channels."""

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    intermediate_size: int = 3420
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    out_hidden_size: int = 2048
    position_table: int = 0
    """Side of a square table of learned positions, interpolated to the grid and added to the patches; 0 is none (Qwen2.5-VL)."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Of a colour in 0…1, by which pixels are normalised; these are CLIP's."""

    def __post_init__(self) -> None:
        check_layers("vision depth", self.depth)
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"vision hidden_size {self.hidden_size} must be a multiple of 4 times its num_heads {self.num_heads}: rows and columns"
                " turn pairs of a head's values"
            )

    @property
    def patch_dim(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class DecoderConfig:
    """The hybrid decoder: attention in the layers of `layer_types` that say so, Gated DeltaNet in the others.

    Families of models differ in these numbers alone.
    """

    vocab_size: int = 151_936
    hidden_size: int = 2048
    intermediate_size: int = 11_008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    num_linear_heads: int = 16
    linear_head_dim: int = 128
    expand_v: float = 2.0
    conv_size: int = 4
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    layer_types: tuple[str, ...] = ()
    partial_rotary_dim: int = 0
    """So many of a head's values, the first, are turned by positions; 0 is all of them."""
    mrope_interleaved: bool = False
    """Frequency pairs take turns among the three axes, instead of one section of them after the other."""
    qkv_bias: bool = True
    head_norms: bool = False
    """RMSNorm over each head's queries and keys, before they are turned."""
    attention_gate: bool = False
    """Attention's output is multiplied by the sigmoid of a projection of its own."""
    shared_linear_key_heads: int = 0
    """Heads of the delta net's queries and keys, each shared by neighbouring heads of values; 0 is `num_linear_heads`, the latter's."""
    float32_norms: bool = False
    """Norms keep float32 weights whatever the model's dtype: those of checkpoints that store weights less 1 don't survive rounding."""

    def __post_init__(self) -> None:
        check_layers("num_hidden_layers", self.num_hidden_layers)
        if not self.layer_types:
            kinds = tuple("attention" if i % 4 == 0 else "delta_net" for i in range(self.num_hidden_layers))
            object.__setattr__(self, "layer_types", kinds)
        if len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types names {len(self.layer_types)} layers, num_hidden_layers says {self.num_hidden_layers}: make them agree"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_linear_heads % self.num_linear_key_heads:
            raise ConfigError(
                f"num_linear_heads {self.num_linear_heads} must be a multiple of num_linear_key_heads {self.num_linear_key_heads}"
            )
        if 2 * sum(self.mrope_section) != self.rotary_dim:
            what = "head_dim" if self.rotary_dim == self.head_dim else "rotary_dim"
            raise ConfigError(f"mrope_section {self.mrope_section} must sum to half of {what} {self.rotary_dim}")
        if self.rotary_dim > self.head_dim:
            raise ConfigError(f"rotary_dim {self.rotary_dim} exceeds head_dim {self.head_dim}")
        sections = self.mrope_section
        if self.mrope_interleaved and sections != tuple((sum(sections) + 2 - axis) // 3 for axis in range(3)):
            raise ConfigError(
                f"mrope_section {sections} cannot be interleaved: sections must be equal, the first ones one longer"
            )

    @property
    def rotary_dim(self) -> int:
        """How many of a head's values are turned by positions."""
        return self.partial_rotary_dim or self.head_dim

    @property
    def num_linear_key_heads(self) -> int:
        """Heads of the delta net's queries and keys."""
        return self.shared_linear_key_heads or self.num_linear_heads

    @property
    def linear_value_dim(self) -> int:
        return int(self.linear_head_dim * self.expand_v)

    @property
    def linear_key_width(self) -> int:
        """Channels of the delta net's queries, and of its keys."""
        return self.num_linear_key_heads * self.linear_head_dim

    @property
    def linear_value_width(self) -> int:
        """Channels of the delta net's values."""
        return self.num_linear_heads * self.linear_value_dim


@dataclass(frozen=True)
class SamplingConfig:
    """How answers are drawn: temperature 0 takes the likeliest token, `top_k` 0 draws from all, a `presence_penalty` of 0 is none."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class InfiniteVLConfig:
    """A whole model. Ids are token ids of its tokenizer."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    policy: AttentionPolicy = field(default_factory=AttentionPolicy)
    vision_start_token_id: int = 151_652
    vision_end_token_id: int = 151_653
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    im_start_token_id: int = 151_644
    eos_token_id: int = 151_645
    pad_token_id: int = 151_643
    tokens_per_second: int = 2
    tokens_per_frame: int = 256
    """At most this many tokens a frame step; the grid is chosen from the picture's aspect ratio within it."""
    square_grid: bool = False
    """Always a square grid of `tokens_per_frame` tokens, whatever the picture's aspect (it is then stretched)."""
    frames_per_step: Literal[1, 2] = 1
    """2 pairs consecutive frames in one temporal patch, as video does."""
    position_horizon: float | None = None
    """The greatest age, in seconds, that a stream shows on the rotary axes; None is unlimited."""
    system: str = "You are a helpful assistant."
    """System text of the chat format when a question brings no instructions; empty leaves the turn out."""
    family: str = "infinitevl"
    """Which of `model.families` it belongs to."""
    positions: Literal["clock", "counter"] = "clock"
    """Whether the time axis follows the clock and the grid stays, or tokens and grids are counted on all axes."""
    position_cap: int | None = None
    """The greatest distance, in positions, at which sinks stand before the present where positions are counted; None is unlimited."""
    step_text: int = 0
    """Tokens of text around the grid of a step, at most."""
    clock_cap: float | None = None
    """Seconds after which the time that a step's text tells begins again; None never."""
    frames_per_second: float | None = None
    """The rate of frames that the model was trained with, which streams have unless they ask for another; None is any."""
    think_start_token_id: int | None = None
    think_end_token_id: int | None = None
    """Around what the model thinks before it answers; None where it does not."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are drawn unless a question says otherwise."""
    thinking_sampling: SamplingConfig = SamplingConfig()
    """The same where it thinks first."""

    def __post_init__(self) -> None:
        if self.vision.out_hidden_size != self.decoder.hidden_size:
            raise ConfigError(
                f"vision out_hidden_size {self.vision.out_hidden_size} must equal the decoder's hidden_size {self.decoder.hidden_size}"
            )
        if self.frames_per_step > self.vision.temporal_patch_size:
            raise ConfigError(
                f"frames_per_step {self.frames_per_step} exceeds temporal_patch_size {self.vision.temporal_patch_size}"
            )
        if self.position_cap is not None and self.position_cap < (self.policy.window or 0) + self.step_tokens:
            raise ConfigError(
                f"position_cap {self.position_cap} is shorter than the attention window of {self.policy.window} tokens and a"
                f" step of {self.step_tokens}: raise it, or shorten the window"
            )
        if self.position_horizon is not None and self.position_horizon < self.window_span:
            raise ConfigError(
                f"position_horizon {self.position_horizon:g} s is shorter than the attention window's span of"
                f" {self.window_span} s: raise it to that, or shorten the window of {self.policy.window} tokens"
            )

    @property
    def window_span(self) -> int:
        """Seconds of stream time that the window's frames span at one step a second; 1 where there is no window."""
        return max(1, -(-(self.policy.window or 0) // self.tokens_per_frame))

    @property
    def horizon_steps(self) -> int | None:
        """`position_horizon` in steps of the time axis."""
        return None if self.position_horizon is None else int(self.position_horizon) * self.tokens_per_second

    @property
    def step_tokens(self) -> int:
        """The most tokens that one call may add to a stream."""
        return self.tokens_per_frame + self.step_text

    def with_policy(self, policy: AttentionPolicy) -> InfiniteVLConfig:
        return replace(self, policy=policy)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` form, with Qwen2.5-VL's key names and ours for sinks, window and steps (see `from_dict`)."""
        decoder = {key: value for key, value in asdict(self.decoder).items() if key not in OTHERS}
        mrope = decoder.pop("mrope_section")
        linear = {
            "num_linear_heads": decoder.pop("num_linear_heads"),
            "num_linear_key_value_heads": self.decoder.num_linear_heads,
            "use_gate": True,
        }
        kinds = ["full_attention" if kind == "attention" else "linear_attention" for kind in decoder.pop("layer_types")]
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "infinitevl",
            **decoder,
            **linear,
            "layer_types": kinds,
            "rope_scaling": {"type": "mrope", "mrope_section": list(mrope)},
            "use_sliding_window": self.policy.window is not None,
            "sliding_window": self.policy.window,
            "attention_sinks": self.policy.sinks,
            "max_position_embeddings": self.policy.context,
            **({"sparse_config": self.policy.sparse_config()} if isinstance(self.policy, RetrievalPolicy) else {}),
            "vision_config": asdict(self.vision) | {"model_type": "qwen2_5_vl"},
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "im_start_token_id": self.im_start_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_frame": self.tokens_per_frame,
            "square_grid": self.square_grid,
            "frames_per_step": self.frames_per_step,
            "position_horizon": self.position_horizon,
            "system": self.system,
        }


def nano() -> InfiniteVLConfig:
    """The embedded default: every part of the architecture, small enough for two CPU cores at 25 frames a second."""
    return InfiniteVLConfig(
        vision=VisionConfig(
            depth=4,
            hidden_size=192,
            num_heads=3,
            intermediate_size=512,
            fullatt_block_indexes=(1, 3),
            out_hidden_size=256,
            position_table=16,
        ),
        decoder=DecoderConfig(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            mrope_section=(8, 12, 12),
            num_linear_heads=4,
            linear_head_dim=64,
        ),
        policy=AttentionPolicy(sinks=64, window=512),
        vision_start_token_id=1,
        vision_end_token_id=2,
        image_token_id=3,
        video_token_id=4,
        im_start_token_id=5,
        eos_token_id=6,
        pad_token_id=0,
        tokens_per_frame=64,
        square_grid=True,
        frames_per_step=2,
        position_horizon=60.0,
        system="",
    )


OTHERS = (
    "partial_rotary_dim", "mrope_interleaved", "qkv_bias", "head_norms", "attention_gate", "shared_linear_key_heads",
    "float32_norms", "family", "step_text",
)  # fmt: skip
"""What InfiniteVL's config.json does not tell, since it never varies there."""


def parse_config(found: dict[str, Any]) -> InfiniteVLConfig:
    """An InfiniteVLConfig from a `config.json`'s contents: v1's keys and the ones that `InfiniteVLConfig.to_dict` writes.

    Text keys may stand at the top or under `text_config`. Ours beyond Qwen2.5-VL's and v1's: `attention_sinks`,
    `tokens_per_frame`, `square_grid`, `frames_per_step`, `position_horizon`, `system`, `sparse_config` (`RetrievalPolicy`'s
    fields; its presence makes the attention one that retrieves). A v1 checkpoint (no sinks named) runs as it was trained:
    plain sliding window. Raises ConfigError.
    """
    text = {**found, **(found.get("text_config") or {})}
    vision = found.get("vision_config")
    if not isinstance(vision, dict):
        raise ConfigError("vision_config is missing: is this the config.json of a vision-language checkpoint?")
    defaults = InfiniteVLConfig()
    try:
        scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
        text = {"rope_theta": scaling.get("rope_theta"), **text}
        known = {key: value for key, value in text.items() if key not in OTHERS}
        sections = tuple(scaling.get("mrope_section", defaults.decoder.mrope_section))
        sizes = checked(DecoderConfig, known, least=1)
        decoder = DecoderConfig(
            **{"head_dim": text["hidden_size"] // text["num_attention_heads"], **sizes},
            mrope_section=(sections[0], sections[1], sections[2]),
            layer_types=tuple(layer_kind(name) for name in text.get("layer_types") or ()),
        )
        heads = text.get("num_linear_key_value_heads", decoder.num_linear_heads)
        if heads != decoder.num_linear_heads:
            raise ConfigError(
                f"num_linear_key_value_heads {heads} differs from num_linear_heads {decoder.num_linear_heads}: not supported"
            )
        if text.get("use_gate") is False:
            raise ConfigError("use_gate false is not supported: every published InfiniteVL has the output gate")
        tower = VisionConfig(
            **checked(VisionConfig, vision, least=0),
            fullatt_block_indexes=tuple(vision.get("fullatt_block_indexes", VisionConfig.fullatt_block_indexes)),
        )
        sliding = text.get("use_sliding_window", text.get("sliding_window") is not None)
        sparse = text.get("sparse_config")
        kind = AttentionPolicy if sparse is None else RetrievalPolicy
        context = min(int(text.get("max_position_embeddings") or kind.context), kind.context)
        policy = (
            AttentionPolicy(
                sinks=int(text.get("attention_sinks") or 0),
                window=int(text.get("sliding_window") or 8192) if sliding else None,
                context=context,
            )
            if sparse is None
            else RetrievalPolicy(**{**checked(RetrievalPolicy, sparse, least=0), "context": context})
        )
        rest = checked(InfiniteVLConfig, known, least=0)
        if "tokens_per_second" not in rest and "tokens_per_second" in vision:
            rest["tokens_per_second"] = vision["tokens_per_second"]
        return InfiniteVLConfig(tower, decoder, policy, **rest)
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"a key is missing or misstated: {error}") from None


KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "float | None": ("a number or null", (int, float, type(None))),
    "bool": ("true or false", (bool,)),
    "str": ("text", (str,)),
    "Literal[1, 2]": ("1 or 2", (int,)),
}


def checked(kind: type, found: dict[str, Any], least: int) -> dict[str, Any]:
    """The plain fields of dataclass `kind` that `found` holds, null left out where it is no value. Raises ConfigError."""
    values = {}
    for f in fields(kind):
        what, types = KINDS.get(str(f.type), ("", ()))
        value = found.get(f.name)
        if not types or f.name not in found or (value is None and type(None) not in types):
            continue
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if wrong or (type(value) is int and value < least):
            raise ConfigError(f"{f.name} {value!r} must be {what}" + ("" if wrong else f" of at least {least}"))
        values[f.name] = value
    return values


def layer_kind(name: str) -> str:
    """What `layer_types` calls a layer, in our words. Raises ConfigError."""
    if "linear" in name or "delta" in name:
        return "delta_net"
    if "attention" in name:
        return "attention"
    raise ConfigError(f"layer_types names {name!r}: it may hold full_attention and linear_attention")


PRESETS: dict[str, InfiniteVLConfig] = {"nano": nano(), "4b": InfiniteVLConfig()}
