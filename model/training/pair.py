"""A teacher's attention layer with the fresh Gated DeltaNet beside it that learns to stand in for it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from model.cache import Cache
from model.config import DecoderConfig
from model.families.infinitevl import InfiniteVL
from model.layers.attention import Attention
from model.layers.delta_net import GatedDeltaNet
from model.layers.mixer import Mixer
from model.ops.rope import Rotation


class Pair(Mixer, kind="pair"):
    """Both are given the teacher's input; the teacher's output goes on. `errors` collects how far the student's was from it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.teacher, self.student = Attention(config, layer), GatedDeltaNet(config, layer)
        self.errors: list[Tensor] = []

    declare = staticmethod(GatedDeltaNet.declare)  # a sequence's keys need no room

    def compare(self, taught: Tensor, learned: Tensor | None) -> Tensor:
        """Notes the squared error over the teacher's mean square, where both spoke; returns the teacher's."""
        if learned is not None:
            wanted = taught.float()
            self.errors.append((learned.float() - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12))
        return taught

    def forward(self, x: Tensor, rotation: Rotation, cache: Cache, outputs: bool = True) -> Tensor:
        """See `Mixer.forward`."""
        return self.compare(self.teacher(x, rotation, cache), self.student(x, rotation, cache, outputs))


@torch.no_grad()
def paired(teacher: InfiniteVL, student: InfiniteVL) -> InfiniteVL:
    """The teacher with a pair wherever the student has a Gated DeltaNet, whose weights are copied."""
    config = student.config
    kinds = tuple("pair" if kind == "delta_net" else kind for kind in config.decoder.layer_types)
    decoder = replace(config.decoder, layer_types=kinds)
    model = InfiniteVL(replace(config, decoder=decoder, policy=teacher.config.policy))
    taught, learned = dict(teacher.named_parameters()), dict(student.named_parameters())
    for name, parameter in model.named_parameters():
        source = learned if ".student." in name else taught
        parameter.copy_(source[name.replace(".teacher.", ".").replace(".student.", ".")])
    return model
