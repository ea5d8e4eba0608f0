"""What the model's tests share: the error they bound, transformers' towers with our weights, and weights worth testing with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from model.config import VisionConfig


def relative_error(found: Tensor, oracle: Tensor) -> float:
    """L2 norm of the difference over that of the oracle."""
    assert found.shape == oracle.shape, f"{tuple(found.shape)} against {tuple(oracle.shape)}"
    found, oracle = found.double(), oracle.double()
    return float((found - oracle).norm() / oracle.norm())


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Random values for every parameter, norms and biases too, at scales that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(-2.5, 1.0, generator=generator)
        elif parameter.dim() < 2:
            parameter.normal_(0.0, 0.2, generator=generator).add_(0.0 if name.endswith("bias") else 1.0)
        elif "embed_tokens" in name:
            parameter.normal_(0.0, 1.0, generator=generator)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


def transformers_vision(config: VisionConfig) -> Qwen2_5_VLVisionConfig:
    """The same tower's configuration in transformers' terms."""
    return Qwen2_5_VLVisionConfig(
        depth=config.depth,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        fullatt_block_indexes=list(config.fullatt_block_indexes),
        out_hidden_size=config.out_hidden_size,
    )


def transformers_tower(tower: nn.Module, config: VisionConfig) -> Qwen2_5_VisionTransformerPretrainedModel:
    """transformers' Qwen2.5-VL tower with `tower`'s weights: their names must be the same."""
    oracle = Qwen2_5_VisionTransformerPretrainedModel(transformers_vision(config))
    oracle.load_state_dict(tower.state_dict())
    return oracle.eval()
