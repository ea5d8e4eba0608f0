"""Qwen3.5's hybrids, and those of 3.6 and 3.8 that share their architecture: sizes, checkpoints, and the words around frames."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from model.config import (
    PRESETS,
    AttentionPolicy,
    ConfigError,
    DecoderConfig,
    InfiniteVLConfig,
    SamplingConfig,
    VisionConfig,
)
from model.families.family import FAMILIES, Family
from model.families.qwen35_tools import QwenTools
from model.families.tools import Round, Tool
from model.families.vocabulary import Vocabulary
from model.layers.qwen_vision import QwenVisionTower

NAME = "qwen3_5"
HALF = (0.5, 0.5, 0.5)
POLICY = AttentionPolicy(sinks=256, window=7936)
"""8,192 keys. Trained with full attention: what a window costs in quality is not known yet."""
TRAINED_POSITIONS = 262_144
CLOCK_CAP = 36_000.0
"""Seconds: training saw hours at most, and its text must not grow."""
FRAMES_PER_SECOND = 2.0
STEP_TEXT = 12
"""A time below `CLOCK_CAP` has at most 10 tokens; the grid's start and end."""
TOKENS_PER_FRAME = 196
"""A picture of 448×448."""
SAMPLING = SamplingConfig(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)
THINKING_SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95, top_k=20, presence_penalty=1.5)
"""As the cards recommend for pictures, without thinking and with."""
KINDS = {"full_attention": "attention", "linear_attention": "delta_net"}
"""Of layers: a checkpoint's words, and ours."""


def config(
    vision: VisionConfig,
    decoder: DecoderConfig,
    vision_start: int = 248_053,
    vision_end: int = 248_054,
    image: int = 248_056,
    video: int = 248_057,
) -> InfiniteVLConfig:
    """A whole model of these sizes."""
    return InfiniteVLConfig(
        vision,
        decoder,
        POLICY,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
        image_token_id=image,
        video_token_id=video,
        im_start_token_id=248_045,
        eos_token_id=248_046,
        pad_token_id=248_044,
        tokens_per_frame=TOKENS_PER_FRAME,
        frames_per_step=2,
        system="",
        family=NAME,
        positions="counter",
        position_cap=TRAINED_POSITIONS,
        step_text=STEP_TEXT,
        clock_cap=CLOCK_CAP,
        frames_per_second=FRAMES_PER_SECOND,
        think_start_token_id=248_068,
        think_end_token_id=248_069,
        sampling=SAMPLING,
        thinking_sampling=THINKING_SAMPLING,
    )


def vision_config(depth: int, width: int, inner: int, out: int, heads: int = 16) -> VisionConfig:
    """A tower of these sizes."""
    return VisionConfig(
        depth=depth,
        hidden_size=width,
        num_heads=heads,
        intermediate_size=inner,
        patch_size=16,
        window_size=0,
        fullatt_block_indexes=(),
        out_hidden_size=out,
        position_table=48,
        mean=HALF,
        std=HALF,
    )


def preset(
    width: int,
    inner: int,
    layers: int,
    heads: tuple[int, int],
    value_heads: int,
    tied: bool,
    vision: VisionConfig,
) -> InfiniteVLConfig:
    """One of the published sizes; `heads` are attention's of queries and of keys."""
    decoder = DecoderConfig(
        vocab_size=248_320,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=256,
        rope_theta=1e7,
        mrope_section=(11, 11, 10),
        num_linear_heads=value_heads,
        linear_head_dim=128,
        expand_v=1.0,
        norm_eps=1e-6,
        tie_word_embeddings=tied,
        layer_types=tuple("attention" if i % 4 == 3 else "delta_net" for i in range(layers)),
        partial_rotary_dim=64,
        mrope_interleaved=True,
        qkv_bias=False,
        head_norms=True,
        attention_gate=True,
        shared_linear_key_heads=16,
        float32_norms=True,
    )
    return config(vision, decoder)


PRESETS |= {
    "qwen3.5-0.8b": preset(1024, 3584, 24, (8, 2), 16, True, vision_config(12, 768, 3072, 1024, heads=12)),
    "qwen3.5-2b": preset(2048, 6144, 24, (8, 2), 16, True, vision_config(24, 1024, 4096, 2048)),
    "qwen3.5-4b": preset(2560, 9216, 32, (16, 4), 32, True, vision_config(24, 1024, 4096, 2560)),
    "qwen3.5-9b": preset(4096, 12_288, 32, (16, 4), 32, False, vision_config(27, 1152, 4304, 4096)),
    "qwen3.5-27b": preset(5120, 17_408, 64, (24, 4), 48, False, vision_config(27, 1152, 4304, 5120)),
}


def required(found: Any, *path: str) -> Any:
    """The value at a path of keys. Raises ConfigError where it is missing: no default of a library is a checkpoint's."""
    value = found
    for i, key in enumerate(path):
        if not isinstance(value, dict) or value.get(key) is None:
            raise ConfigError(
                f"{'.'.join(path[: i + 1])} is missing: its value can't be guessed, take the config.json that came with the weights"
            )
        value = value[key]
    return value


def whole(found: dict[str, Any], *path: str) -> int:
    """The positive whole number at a path of keys. Raises ConfigError."""
    value = required(found, *path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{'.'.join(path)} {value!r} must be a whole number of at least 1")
    return value


def real(found: dict[str, Any], *path: str) -> float:
    """The positive number at a path of keys. Raises ConfigError."""
    value = required(found, *path)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{'.'.join(path)} {value!r} must be a number above 0 and below infinity")
    return float(value)


def only(found: dict[str, Any], what: Any, *path: str) -> None:
    """Raises ConfigError where a key is there and says anything but `what`."""
    value: Any = found
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    if value is not None and value != what:
        raise ConfigError(f"{'.'.join(path)} {value!r} is not supported: only {what!r} is")


def parse(found: dict[str, Any]) -> InfiniteVLConfig:
    """An InfiniteVLConfig from a `config.json`'s contents, in transformers' form. Raises ConfigError."""
    text, rope = ("text_config",), ("text_config", "rope_parameters")
    only(found, "default", *rope, "rope_type")
    only(found, True, *rope, "mrope_interleaved")
    only(found, "silu", *text, "hidden_act")
    only(found, False, *text, "attention_bias")
    only(found, True, *text, "attn_output_gate")
    only(found, "gelu_pytorch_tanh", "vision_config", "hidden_act")
    only(found, 3, "vision_config", "in_channels")
    only(found, [], "vision_config", "deepstack_visual_indexes")
    kinds, sections = required(found, *text, "layer_types"), required(found, *rope, "mrope_section")
    if not isinstance(kinds, list) or not isinstance(sections, list) or len(sections) != 3:
        raise ConfigError(
            f"text_config.layer_types {kinds!r} must be a list of kinds, rope_parameters.mrope_section {sections!r} one of 3 numbers"
        )
    for kind in kinds:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(
                f"text_config.layer_types names {kind!r}, which is not supported: only {' and '.join(KINDS)} are"
            )
    key_heads, value_heads = (whole(found, *text, f"linear_num_{which}_heads") for which in ("key", "value"))
    if value_heads % key_heads:
        raise ConfigError(
            f"text_config.linear_num_value_heads {value_heads} must be a multiple of linear_num_key_heads {key_heads}: take the"
            " config.json that came with the weights"
        )
    head, key_head = whole(found, *text, "head_dim"), whole(found, *text, "linear_key_head_dim")
    value_head = whole(found, *text, "linear_value_head_dim")
    tied = found.get("tie_word_embeddings", (found.get("text_config") or {}).get("tie_word_embeddings"))
    if not isinstance(tied, bool):
        raise ConfigError(
            "tie_word_embeddings is missing: its value can't be guessed, take the config.json that came with the weights"
        )
    turned = round(head * real(found, *rope, "partial_rotary_factor"))
    if sections != [(turned // 2 + 2 - axis) // 3 for axis in range(3)]:
        raise ConfigError(
            f"text_config.head_dim {head} and partial_rotary_factor turn {turned} of a head's values, which mrope_section {sections} does"
            " not part into three axes: take the config.json that came with the weights"
        )
    eps = real(found, *text, "rms_norm_eps")
    decoder = DecoderConfig(
        vocab_size=whole(found, *text, "vocab_size"),
        hidden_size=whole(found, *text, "hidden_size"),
        intermediate_size=whole(found, *text, "intermediate_size"),
        num_hidden_layers=whole(found, *text, "num_hidden_layers"),
        num_attention_heads=whole(found, *text, "num_attention_heads"),
        num_key_value_heads=whole(found, *text, "num_key_value_heads"),
        head_dim=head,
        rms_norm_eps=eps,
        rope_theta=real(found, *rope, "rope_theta"),
        mrope_section=(sections[0], sections[1], sections[2]),
        num_linear_heads=value_heads,
        linear_head_dim=key_head,
        expand_v=value_head / key_head,
        conv_size=whole(found, *text, "linear_conv_kernel_dim"),
        norm_eps=eps,
        tie_word_embeddings=tied,
        layer_types=tuple(KINDS[kind] for kind in kinds),
        partial_rotary_dim=turned,
        mrope_interleaved=True,
        qkv_bias=False,
        head_norms=True,
        attention_gate=True,
        shared_linear_key_heads=key_heads,
        float32_norms=True,
    )
    table = whole(found, "vision_config", "num_position_embeddings")
    side = round(table**0.5)
    if side * side != table:
        raise ConfigError(f"vision_config.num_position_embeddings {table} must be a square")
    vision = VisionConfig(
        depth=whole(found, "vision_config", "depth"),
        hidden_size=whole(found, "vision_config", "hidden_size"),
        num_heads=whole(found, "vision_config", "num_heads"),
        intermediate_size=whole(found, "vision_config", "intermediate_size"),
        patch_size=whole(found, "vision_config", "patch_size"),
        temporal_patch_size=whole(found, "vision_config", "temporal_patch_size"),
        spatial_merge_size=whole(found, "vision_config", "spatial_merge_size"),
        window_size=0,
        fullatt_block_indexes=(),
        out_hidden_size=whole(found, "vision_config", "out_hidden_size"),
        position_table=side,
        mean=HALF,
        std=HALF,
    )
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return config(vision, decoder, *(whole(found, name) for name in names))


NAMES = {
    "linear_attn.in_proj_z": "self_attn.g_proj",
    "linear_attn.in_proj_a": "self_attn.a_proj",
    "linear_attn.in_proj_b": "self_attn.b_proj",
    "linear_attn.out_proj": "self_attn.o_proj",
    "linear_attn.norm": "self_attn.o_norm",
    "linear_attn.": "self_attn.",
}
"""Their words for the delta net's parts, and ours; the first that fits."""


def convert(name: str, value: Tensor, config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
    """A checkpoint's tensor as ours: joint projections apart, 1 added to the norms that store their weights less 1 (in float32).

    The head for drafts of several tokens (`mtp.`) is left out. Raises ValueError for one that can't be taken apart.
    """
    if name.startswith("mtp."):
        return
    if name.startswith("model.visual."):
        yield name.removeprefix("model."), value
        return
    name = name.replace("model.language_model.", "model.", 1)
    sizes = (config.linear_key_width, config.linear_key_width, config.linear_value_width)
    if ".linear_attn." in name:
        head, _, part = name.partition(".linear_attn.")
        if part in ("in_proj_qkv.weight", "conv1d.weight"):
            if rows(value) != sum(sizes):
                raise ValueError(f"its {rows(value)} rows are not {' + '.join(map(str, sizes))}")
            ending = "proj" if part == "in_proj_qkv.weight" else "conv1d"
            for letter, piece in zip("qkv", value.split(sizes), strict=True):
                yield f"{head}.self_attn.{letter}_{ending}.weight", piece
            return
        for theirs, ours in NAMES.items():
            if theirs in name:
                yield name.replace(theirs, ours), value
                return
    if name.endswith("self_attn.q_proj.weight"):
        if rows(value) != 2 * config.num_attention_heads * config.head_dim:
            raise ValueError(
                f"its {rows(value)} rows are not twice {config.num_attention_heads} heads of {config.head_dim}"
            )
        queries, gates = value.unflatten(0, (-1, 2, config.head_dim)).unbind(1)
        yield name, queries.flatten(0, 1)
        yield name.replace("q_proj", "g_proj"), gates.flatten(0, 1)
    elif name.endswith("norm.weight"):
        yield name, 1 + value.float()
    else:
        yield name, value


def rows(value: Tensor) -> int:
    """Of a tensor; a lone number has none."""
    return value.shape[0] if value.dim() else 0


class TimedPrompt:
    """Frames open the user's turn, each step with the time before it; a question ends that turn."""

    def __init__(self, tokenizer: Vocabulary, config: InfiniteVLConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.opening = (config.im_start_token_id, *tokenizer.encode("user\n"))
        self.after = (config.vision_end_token_id,)
        self.tools = QwenTools(tokenizer)

    def before(self, seconds: float) -> list[int]:
        """The time, to a tenth of a second as Python rounds, which begins again at the clock's cap."""
        shown = seconds if self.config.clock_cap is None else seconds % self.config.clock_cap
        return [*self.tokenizer.encode(f"<{shown:.1f} seconds>"), self.config.vision_start_token_id]

    def question(
        self,
        text: str,
        instructions: str,
        history: Sequence[tuple[str, str]],
        thinking: bool,
        tools: Sequence[Tool] = (),
        rounds: Sequence[Round] = (),
    ) -> list[int]:
        """See `Prompt.question`; tools and instructions stand before the text, since a system turn may only stand before the frames."""
        config, encode = self.config, self.tokenizer.encode
        assert config.think_start_token_id is not None and config.think_end_token_id is not None
        start, end, newline = config.im_start_token_id, config.eos_token_id, encode("\n")
        ids: list[int] = []
        told = f"{instructions.strip()}\n\n{text}" if instructions.strip() else text
        for i, (asked, answer) in enumerate((*history, (told, ""))):
            if tools and i == len(history):
                ids += [start, *encode("user\n")] if i else []
                ids += [*self.tools.told(tools), *encode(f"\n\n{asked.strip()}"), end, *newline, start]
                continue
            ids += encode(asked.rstrip()) if i == 0 else [start, *encode(f"user\n{asked.strip()}")]
            ids += [end, *newline, start]
            if i < len(history):
                ids += [*encode(f"assistant\n{answer.strip()}"), end, *newline]
        for turn in rounds:
            said, came = self.tools.answered(turn)
            ids += [*encode("assistant\n"), *said, end, *newline, start, *encode("user\n"), *came, end, *newline, start]
        ids += [*encode("assistant\n"), config.think_start_token_id]
        return [*ids, *newline] if thinking else [*ids, *encode("\n\n"), config.think_end_token_id, *encode("\n\n")]


FAMILIES[NAME] = Family((NAME,), parse, convert, QwenVisionTower, TimedPrompt)
