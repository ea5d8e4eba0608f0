"""Small models with weights that leave no parameter idle, and the error measure of the oracle tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from model.config import PRESETS, AttentionPolicy, DecoderConfig, InfiniteVLConfig, VisionConfig
from model.families.infinitevl import InfiniteVL

VISION = VisionConfig(
    depth=3,
    hidden_size=64,
    num_heads=4,
    intermediate_size=96,
    fullatt_block_indexes=(1,),
    out_hidden_size=48,
)
DECODER = DecoderConfig(
    vocab_size=2048,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    mrope_section=(2, 3, 3),
    num_linear_heads=3,
    linear_head_dim=8,
)
Module = TypeVar("Module", bound=nn.Module)
SMALL = InfiniteVLConfig(
    vision=VISION,
    decoder=DECODER,
    policy=AttentionPolicy(sinks=6, window=20),
    vision_start_token_id=1,
    vision_end_token_id=2,
    image_token_id=3,
    video_token_id=4,
    im_start_token_id=5,
    eos_token_id=6,
    pad_token_id=0,
    tokens_per_frame=12,
    system="",
)


def small(**changes: Any) -> InfiniteVLConfig:
    """The small configuration with some fields changed."""
    return replace(SMALL, **changes)


def of_another_tokenizer() -> InfiniteVLConfig:
    """The small configuration with the special tokens and the vocabulary of the 4B, which lie beyond the nano's tokenizer."""
    whole = PRESETS["4b"]
    ids = {name: value for name, value in vars(whole).items() if name.endswith("_token_id")}
    return small(decoder=replace(DECODER, vocab_size=whole.decoder.vocab_size), **ids)


def build(config: InfiniteVLConfig, seed: int = 0) -> InfiniteVL:
    """A model whose every parameter is random."""
    return scatter(InfiniteVL(config), seed).eval()


@torch.no_grad()
def scatter(module: Module, seed: int = 0) -> Module:
    """Random weights: matrices keep their inputs' scale, norms vary around 1, biases and gates are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("A_log"):
            parameter.copy_(noise * 0.5)
        elif name.endswith("dt_bias"):
            parameter.copy_(noise - 2)
        elif "norm" in name or "ln_q" in name:
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.copy_(0.2 * noise)
        elif "embed_tokens" in name or "conv1d" in name:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module


def error(found: Tensor, oracle: Tensor) -> float:
    """L2 norm of the difference over that of the oracle."""
    assert found.shape == oracle.shape
    assert oracle.isfinite().all()
    return float((found.double() - oracle.double()).norm() / oracle.double().norm())


def patches(config: VisionConfig, *shape: int, grid: tuple[int, int], seed: int = 0) -> Tensor:
    """Random patches, float32 [*shape, grid patches, patch_dim]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, grid[0] * grid[1], config.patch_dim, generator=generator)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
