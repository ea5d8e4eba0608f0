"""A model of nano's make and a sixth of its cost, for tests in which it doesn't matter what is answered."""

from dataclasses import replace
from typing import Any

from model.config import PRESETS

_nano = PRESETS["nano"]
PRESETS["tiny"] = replace(
    _nano,
    vision=replace(
        _nano.vision,
        depth=2,
        hidden_size=48,
        num_heads=3,
        intermediate_size=64,
        fullatt_block_indexes=(1,),
        out_hidden_size=64,
    ),
    decoder=replace(
        _nano.decoder, hidden_size=64, intermediate_size=96, num_hidden_layers=2, layer_types=("attention", "delta_net")
    ),
)
TINY: dict[str, Any] = {"name": "tiny", "random_weights": True, "threads": 1}
"""Untrained, it talks until it is stopped."""
