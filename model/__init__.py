"""Frames and text through InfiniteVL: the model, its streaming state and what runs them."""

from model.config import AttentionPolicy, ConfigError, InfiniteVLConfig
from model.serving.capacity import CapacityError
from model.serving.runner import Runner, load_runner
from model.serving.sampling import Sampling
from model.state import Snapshot

__all__ = [
    "AttentionPolicy",
    "CapacityError",
    "ConfigError",
    "InfiniteVLConfig",
    "Runner",
    "Sampling",
    "Snapshot",
    "load_runner",
]
