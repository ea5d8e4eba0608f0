"""transformers' Qwen3.5 with random weights that leave nothing at its initial value, and ours with the same weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from model.config import PRESETS, InfiniteVLConfig
from model.families.family import FAMILIES, parse
from model.families.infinitevl import InfiniteVL

TEXT: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128,
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 3, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "out_hidden_size": 64,
}  # fmt: skip
IDS = {"vision_start_token_id": 291, "vision_end_token_id": 292, "image_token_id": 293, "video_token_id": 294}
ROPE = {
    "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10],
    "mrope_interleaved": True,
}  # fmt: skip


def theirs(text: dict[str, Any], vision: dict[str, Any], tied: bool = True, **ids: int) -> Qwen3_5Config:
    """transformers' configuration of these sizes."""
    config = Qwen3_5Config(
        text_config={**text, "rope_parameters": dict(ROPE), "tie_word_embeddings": tied},
        vision_config=dict(vision),
        tie_word_embeddings=tied,
        **ids,
    )
    config._attn_implementation = "eager"
    return config


def of_preset(name: str) -> Qwen3_5Config:
    """transformers' configuration of a published size."""
    ours = PRESETS[name]
    decoder, vision = ours.decoder, ours.vision
    return theirs(
        {
            "vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size, "num_hidden_layers": decoder.num_hidden_layers,
            "num_attention_heads": decoder.num_attention_heads, "num_key_value_heads": decoder.num_key_value_heads,
            "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": decoder.num_linear_heads,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        },
        {
            "depth": vision.depth, "hidden_size": vision.hidden_size, "num_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size, "out_hidden_size": vision.out_hidden_size,
        },
        decoder.tie_word_embeddings,
    )  # fmt: skip


@torch.no_grad()
def scatter(module: nn.Module, seed: int = 0) -> None:
    """Random weights: matrices keep their inputs' scale, norms vary around what they are at first, biases are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("A_log"):
            parameter.copy_(noise * 0.5)
        elif name.endswith("dt_bias"):
            parameter.copy_(noise - 2)
        elif "norm" in name and name.endswith("weight"):
            plain = "linear_attn" in name or "visual" in name  # the others are stored less 1
            parameter.copy_(plain + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.2 * noise)
        elif "embed" in name or "conv1d" in name:
            parameter.copy_(0.5 * noise)
        else:  # both forms of GELU are one near 0: what goes into it is wide
            parameter.copy_(noise * parameter[0].numel() ** -0.5 * (1 + 2 * ("blocks" in name and "linear_fc" in name)))


@cache
def twin(tied: bool = True) -> Qwen3_5ForConditionalGeneration:
    """A tiny one."""
    model = Qwen3_5ForConditionalGeneration(theirs(TEXT, VISION, tied, **IDS)).eval()
    scatter(model)
    return model


def configuration(twin: Qwen3_5ForConditionalGeneration) -> InfiniteVLConfig:
    """Our configuration, by way of the contents of a config.json."""
    return parse(twin.config.to_dict())


def converted(twin: Qwen3_5ForConditionalGeneration) -> dict[str, Tensor]:
    """Their weights as ours."""
    config = configuration(twin)
    return {
        ours: tensor
        for name, value in twin.state_dict().items()
        for ours, tensor in FAMILIES[config.family].convert(name, value, config.decoder)
    }


def ours(twin: Qwen3_5ForConditionalGeneration, config: InfiniteVLConfig | None = None) -> InfiniteVL:
    """Our model with the same weights."""
    model = InfiniteVL(config or configuration(twin)).eval()
    weights = converted(twin)
    if model.config.decoder.tie_word_embeddings:
        weights.pop("lm_head.weight")
    model.load_state_dict(weights)
    return model
