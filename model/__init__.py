"""Frames and text through InfiniteVL: the model, its streaming state and what runs them."""

from model.config import AttentionPolicy, ConfigError, InfiniteVLConfig
from model.serving.capacity import RoomError
from model.serving.runner import Runner, load_runner
from model.serving.sampling import Sampling
from model.state import Snapshot

__all__ = [
    "AttentionPolicy",
    "ConfigError",
    "InfiniteVLConfig",
    "RoomError",
    "Runner",
    "Sampling",
    "Snapshot",
    "load_runner",
]
