"""Attention policies: which keys a query sees, as configuration over the same weights."""

from __future__ import annotations

from dataclasses import dataclass, fields


class ConfigError(ValueError):
    """A model configuration that cannot be built; the message names the key, its value and the mend."""


@dataclass(frozen=True)
class AttentionPolicy:
    """Which keys a query sees: key `j` is visible to query `i` (`j <= i`) iff `j < sinks` or `i - j < window` (paper, eq. 8).

    `window` None is full attention (Base): everything is kept, up to `context` tokens.
    """

    sinks: int = 256
    window: int | None = 2048
    context: int = 32_768

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ConfigError(f"attention window {self.window} must be at least 1 token (or null for full attention)")
        if self.sinks < 0:
            raise ConfigError(f"attention sinks {self.sinks} must not be negative")

    def ring_size(self, step: int) -> int:
        """Tokens a ring must hold so that writing `step` keys before attending destroys none that eq. 8 still shows."""
        return self.context if self.window is None else self.window + step


FULL = AttentionPolicy(sinks=0, window=None)


@dataclass(frozen=True)
class RetrievalPolicy(AttentionPolicy):
    """InfiniteVL-Offline: everything is kept, and each query sees the blocks that it chooses (see `model.ops.retrieval`).

    Lengths in tokens, under the names that `sparse_config` has for InfLLM-V2 in a `config.json`.
    """

    sinks: int = 0
    window: int | None = None
    context: int = 1_048_576
    block_size: int = 32
    kernel_size: int = 32
    """Of the spans that keys are pooled over, and of the step from one to the next."""
    kernel_stride: int = 16
    init_blocks: int = 1
    """The first blocks, which every query sees."""
    window_size: int = 2048
    """The last tokens, which every query sees."""
    topk: int = 64
    """Blocks that a query chooses beside those."""
    dense_len: int = 4128
    """A query at an index below this sees all before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks or self.window is not None:
            raise ConfigError("attention that retrieves takes no sinks and no window: set init_blocks and window_size")
        for name in ("block_size", "kernel_size", "kernel_stride", "window_size", "topk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sparse_config {name} {getattr(self, name)} must be at least 1")
        for name in ("init_blocks", "dense_len"):
            if getattr(self, name) < 0:
                raise ConfigError(f"sparse_config {name} {getattr(self, name)} must not be negative")
        for name in ("block_size", "kernel_size"):
            if getattr(self, name) % self.kernel_stride:
                raise ConfigError(
                    f"sparse_config {name} {getattr(self, name)} must be a multiple of kernel_stride {self.kernel_stride}"
                )

    def sparse_config(self) -> dict[str, int]:
        """What `config.json` tells of it under that name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in AttentionPolicy.__annotations__}

    @property
    def ratio(self) -> int:
        """Spans that begin in a block."""
        return self.block_size // self.kernel_stride
