"""Presets with random weights, for measurements: they cost what trained ones do, and their answers mean nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch

from model.checkpoint import kept_dtype
from model.config import PRESETS, InfiniteVLConfig
from model.families.infinitevl import InfiniteVL

SPECIAL = (
    "vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id", "im_start_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip


def random_config(name: str, **choices: Any) -> InfiniteVLConfig:
    """A preset's sizes with the special tokens of the nano, whose tokenizer it is run with; `choices` override the preset's."""
    nano = PRESETS["nano"]
    return replace(PRESETS[name], **{field: getattr(nano, field) for field in SPECIAL} | choices)


def random_vocabulary(path: Path, config: InfiniteVLConfig) -> tokenizers.Tokenizer:
    """A tokenizer.json, filled up with made words to the model's vocabulary: every token that random weights give is text."""
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for name, token in (("<think>", config.think_start_token_id), ("</think>", config.think_end_token_id)):
        if token is not None:
            vocabulary[name] = token
            content["added_tokens"].append(content["added_tokens"][0] | {"id": token, "content": name})
    taken = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    vocabulary |= {f"Ġw{i}": i for i in range(config.decoder.vocab_size) if i not in taken}
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def random_model(config: InfiniteVLConfig, device: str, dtype: torch.dtype) -> InfiniteVL:
    """A model of seeded random weights, made on its device, in `dtype` but for what a checkpoint keeps in float32 too."""
    torch.manual_seed(0)
    with torch.device(device):
        model = InfiniteVL(config)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(kept_dtype(config.decoder, name, dtype))
    model.eval().fuse()
    return model
