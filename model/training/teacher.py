"""Teachers of true size: a transformer of the Hugging Face hub, read by transformers, as a model of ours whose layers are all attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import CheckpointError, locate
from model.config import ConfigError, DecoderConfig, InfiniteVLConfig, VisionConfig
from model.families.infinitevl import InfiniteVL, convert
from model.training.saving import put
from model.training.stages import StageError, attentive

READ = "qwen2_5_vl"
"""The architecture whose weights a teacher's are, name by name."""
PAINTED = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
"""How the world cuts its pictures."""


def special(vocabulary: Path, name: str) -> int:
    """A special token's id in a tokenizer.json. Raises StageError."""
    try:
        added = json.loads(vocabulary.read_text())["added_tokens"]
        return int(next(token["id"] for token in added if token["content"] == name))
    except (OSError, ValueError, KeyError, StopIteration):
        raise StageError(
            f"{vocabulary} has no {name}: a teacher's folder holds the tokenizer.json that it was trained with"
        ) from None


def sizes(found: Any, vocabulary: Path) -> InfiniteVLConfig:
    """The configuration of a teacher by transformers' of it; the Gated DeltaNets of its student have a head for each of its own.

    Raises StageError.
    """
    text, tower = found.text_config, found.vision_config
    for name, painted in PAINTED.items():
        if getattr(tower, name) != painted:
            raise StageError(f"the teacher's {name} is {getattr(tower, name)}: the made world is painted for {painted}")
    if text.num_hidden_layers % 4:
        raise StageError(
            f"the teacher has {text.num_hidden_layers} layers: one of four stays attention, so give one of a multiple of 4"
        )
    rope, heads = text.rope_parameters, text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    try:
        decoder = DecoderConfig(
            text.vocab_size, text.hidden_size, text.intermediate_size, text.num_hidden_layers, heads,
            text.num_key_value_heads, head, text.rms_norm_eps, float(rope["rope_theta"]), tuple(rope["mrope_section"]),
            num_linear_heads=heads, linear_head_dim=head, tie_word_embeddings=bool(found.tie_word_embeddings),
        )  # fmt: skip
        vision = VisionConfig(
            tower.depth, tower.hidden_size, tower.num_heads, tower.intermediate_size, window_size=tower.window_size,
            fullatt_block_indexes=tuple(tower.fullatt_block_indexes), out_hidden_size=tower.out_hidden_size,
        )  # fmt: skip
        return attentive(
            InfiniteVLConfig(
                vision,
                decoder,
                vision_start_token_id=special(vocabulary, "<|vision_start|>"),
                vision_end_token_id=special(vocabulary, "<|vision_end|>"),
                image_token_id=special(vocabulary, "<|image_pad|>"),
                video_token_id=special(vocabulary, "<|video_pad|>"),
                im_start_token_id=special(vocabulary, "<|im_start|>"),
                eos_token_id=special(vocabulary, "<|im_end|>"),
                pad_token_id=special(vocabulary, "<|endoftext|>"),
                tokens_per_second=int(getattr(tower, "tokens_per_second", 2)),
                tokens_per_frame=64,
                square_grid=True,
                frames_per_step=2,
                system="",
            )
        )
    except (ConfigError, TypeError, KeyError) as error:
        raise StageError(f"the teacher's sizes don't fit: {error}") from None


def read_teacher(name: str) -> tuple[InfiniteVL, Path]:
    """A teacher by its folder or "owner/name", in float32, and its tokenizer.json. Raises StageError."""
    try:
        from transformers import AutoConfig, AutoModelForImageTextToText
    except ImportError:
        raise StageError(
            f"{name} is read by transformers, which is not installed: pip install 'streamer[verify]'"
        ) from None
    try:
        folder = locate(name)
        found = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except CheckpointError as error:
        raise StageError(f"--from {name} is neither a stage's folder nor a teacher: {error}") from None
    except Exception as error:  # transformers and its validators raise a dozen kinds
        reason = str(error).strip().splitlines()[-1].strip()
        raise StageError(f"--from {name} is neither a stage's folder nor a teacher: {reason}") from None
    if found.model_type != READ:
        raise StageError(
            f"--from {name} is a {found.model_type}: a teacher is a {READ} (Qwen/Qwen2.5-VL-3B-Instruct, say)"
        )
    vocabulary = folder / "tokenizer.json"
    config = sizes(found, vocabulary)
    try:  # neither code nor pickles of the folder's are run
        theirs = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise StageError(f"--from {name} can't be loaded: {str(error).strip().splitlines()[0]}") from None
    weights = dict(pair for key, value in theirs.state_dict().items() for pair in convert(key, value, config.decoder))
    with torch.device("cpu"):
        model = InfiniteVL(config)
    put(model, weights, f"--from {name}")
    return model, vocabulary
