"""A checkpoint as transformers computes it: what `verify` holds ours to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.checkpoint import CheckpointError, Unfilled, place, shards, tensors
from model.config import InfiniteVLConfig

if TYPE_CHECKING:
    from collections.abc import Callable


def reference(config: InfiniteVLConfig, folder: Path, device: str, dtype: torch.dtype) -> Any:
    """transformers' model of the folder's weights, which takes what its models of video and text take.

    Raises CheckpointError, KeyError for a family that `REFERENCES` lacks, ModuleNotFoundError without transformers.
    """
    try:
        model = REFERENCES[config.family](config, folder, dtype)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"transformers can't load {folder}: {str(error).splitlines()[0]}") from None
    return model.to(device).eval()


def qwen35(config: InfiniteVLConfig, folder: Path, dtype: torch.dtype) -> Any:
    """Qwen3.5 is a model of transformers."""
    from transformers import Qwen3_5ForConditionalGeneration

    return Qwen3_5ForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True, use_safetensors=True
    )


def infinitevl(config: InfiniteVLConfig, folder: Path, dtype: torch.dtype) -> Any:
    """InfiniteVL of parts that transformers has: Qwen2.5-VL with OLMo-Hybrid's Gated DeltaNet in its linear layers.

    Attention is full, so it is a reference for prompts within the window only. Tensors are named by the published layouts
    (`model.visual.*` and `model.language_model.*`, or without the inner prefix) and read without our loader's help.
    """
    from transformers import OlmoHybridConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    class DeltaNet(OlmoHybridGatedDeltaNet):
        """Called as Qwen2.5-VL calls its attention; position and mask play no part without padding."""

        def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
            return super().forward(hidden_states), None

    decoder, settings = config.decoder, qwen25(config)
    linear = OlmoHybridConfig(
        hidden_size=decoder.hidden_size,
        num_hidden_layers=decoder.num_hidden_layers,
        linear_num_value_heads=decoder.num_linear_heads,
        linear_num_key_heads=decoder.num_linear_heads,
        linear_key_head_dim=decoder.linear_head_dim,
        linear_value_head_dim=decoder.linear_value_dim,
        linear_conv_kernel_dim=decoder.conv_size,
        linear_allow_neg_eigval=False,
    )
    with Unfilled():
        model: Any = Qwen2_5_VLForConditionalGeneration(settings)
        for i, kind in enumerate(decoder.layer_types):
            if kind == "delta_net":
                model.model.language_model.layers[i].self_attn = DeltaNet(linear, i)
                model.model.language_model.layers[i].self_attn.o_norm.variance_epsilon = decoder.norm_eps
    lacking = {name for name, _ in model.named_parameters()}
    filters: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in tensors(shards(folder)):
        name = theirs(stored)
        owner, _, leaf = name.rpartition(".self_attn.")
        if leaf.endswith("_conv1d.weight"):
            filters.setdefault(owner, {})[leaf[0]] = tensor
        elif name in lacking:
            lacking.remove(name)
            place(model, name, tensor.to(dtype))
    for owner, parts in filters.items():
        name = f"{owner}.self_attn.conv1d.weight"
        lacking.discard(name)
        place(model, name, torch.cat([parts[part] for part in "qkv"]).to(dtype))
    if decoder.tie_word_embeddings:
        lacking.discard("lm_head.weight")
        model.tie_weights()
    if lacking:
        raise ValueError(f"it has no {min(lacking)}")
    return model


def qwen25(config: InfiniteVLConfig) -> Any:
    """transformers' Qwen2.5-VL of these sizes, attention in every layer, plainly computed."""
    from transformers import Qwen2_5_VLConfig

    decoder = config.decoder
    vision = {key: value for key, value in asdict(config.vision).items() if key != "position_table"}
    text = {
        "vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size, "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads, "num_key_value_heads": decoder.num_key_value_heads,
        "rms_norm_eps": decoder.rms_norm_eps, "bos_token_id": None, "eos_token_id": config.eos_token_id,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": decoder.rope_theta, "mrope_section": list(decoder.mrope_section)
        },
    }  # fmt: skip
    settings = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | {"tokens_per_second": config.tokens_per_second},
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        tie_word_embeddings=decoder.tie_word_embeddings,
    )
    settings._attn_implementation = "eager"
    return settings


def theirs(name: str) -> str:
    """A tensor's name in transformers, whichever of the published layouts it comes from."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


REFERENCES: dict[str, Callable[[InfiniteVLConfig, Path, torch.dtype], Any]] = {
    "qwen3_5": qwen35,
    "infinitevl": infinitevl,
}
"""By family."""
