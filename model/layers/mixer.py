"""What mixes a decoder layer's tokens with its past: the interface of attention, Gated DeltaNet and whatever else a recipe names."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from model.cache import Cache
from model.config import AttentionPolicy, DecoderConfig
from model.ops.rope import Rotation
from model.state import DECLARED, Part


class Mixer(nn.Module):
    """A kind of layer. `class X(Mixer, kind="x")` makes it the one that `layer_types` calls "x", and enters what it declares."""

    kinds: ClassVar[dict[str, type[Mixer]]] = {}

    def __init_subclass__(cls, kind: str) -> None:
        Mixer.kinds[kind], DECLARED[kind] = cls, cls.declare

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer

    @staticmethod
    def declare(config: DecoderConfig, policy: AttentionPolicy, step: int) -> tuple[Part, ...]:
        """What such a layer keeps of a stream, where one call adds at most `step` tokens."""
        return ()

    def fuse(self) -> None:
        """Joins projections for inference."""

    def forward(self, x: Tensor, rotation: Rotation, cache: Cache, outputs: bool = True) -> Tensor | None:
        """`x` [batch, n, hidden], `rotation` of its positions; extends `cache`. Returns [batch, n, hidden].

        Without `outputs` only the cache need be extended, and None may be returned.
        """
        raise NotImplementedError
