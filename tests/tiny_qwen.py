"""A model of Qwen3.5's make, small enough for tests in which it doesn't matter what is answered."""

from dataclasses import replace
from typing import Any

from model.config import PRESETS, AttentionPolicy

_whole = PRESETS["qwen3.5-0.8b"]
PRESETS["tiny-qwen"] = replace(
    _whole,
    vision=replace(_whole.vision, depth=2, hidden_size=48, num_heads=3, intermediate_size=64, out_hidden_size=64),
    decoder=replace(
        _whole.decoder, vocab_size=2048, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        layer_types=("delta_net", "attention"), num_attention_heads=2, num_key_value_heads=1, head_dim=64,
        partial_rotary_dim=16, mrope_section=(3, 3, 2), num_linear_heads=4, shared_linear_key_heads=2, linear_head_dim=16,
        tie_word_embeddings=False,
    ),
    policy=AttentionPolicy(sinks=16, window=512),
    tokens_per_frame=25,
    think_start_token_id=2046,
    think_end_token_id=2047,
)  # fmt: skip
TINY_QWEN: dict[str, Any] = {"name": "tiny-qwen", "random_weights": True, "threads": 1}
