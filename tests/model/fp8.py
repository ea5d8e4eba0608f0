"""What fp8 costs the nano: `python -m tests.model.fp8 [STREAMS]` examines it with its big products rounded as the GPU engine's are.

Weights and inputs go to e4m3 by row and back, on any device; what lies between the products stays float32.
"""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.evaluation.run import SEED, papers
from model.evaluation.score import Exam, Marks, score
from model.serving.quantize import quantize_rows
from model.serving.runner import NANO
from model.world.render import Assets, Painter


class Bar:
    def update(self, steps: int) -> None:
        pass


class Rounded:
    """`F.linear` in fp8, but for the weights at the addresses `whole`."""

    def __init__(self, whole: set[int]) -> None:
        self.plain, self.whole = F.linear, whole
        self.weights: dict[tuple[int, torch.Size], Tensor] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.data_ptr() in self.whole:
            return self.plain(x, weight, bias)
        key = weight.data_ptr(), weight.shape
        if key not in self.weights:
            self.weights[key] = rounded(weight)
        return self.plain(rounded(x.flatten(0, -2)).view(x.shape), self.weights[key], bias)


def rounded(rows: Tensor) -> Tensor:
    data, scales = quantize_rows(rows)
    return data.to(rows.dtype) * scales[:, None]


def main() -> None:
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    torch.set_num_threads(1)
    network, tokenizer = load_checkpoint(NANO, device="cpu", dtype=torch.float32)
    network.eval().fuse()
    visual = network.visual
    whole = {p.data_ptr() for part in (visual.patch_embed, visual.merger) for p in part.parameters()}
    chosen = [paper for paper in papers(True) if paper.name in ("now", "memory 128")]
    for name, linear in (("float32", F.linear), ("fp8", Rounded(whole))):
        F.linear = linear
        marks = Marks()
        exam = Exam(network, Painter(Assets.load(), "cpu"), tokenizer, marks, Bar())
        for paper in chosen:
            asked = streams if paper.name == "now" else max(2, streams // 10)
            with torch.inference_mode():
                score(exam, replace(paper, streams=asked, controls=False), SEED)
            counts = [count for key, count in marks.counts.items() if key[0] == paper.name]
            print(name, paper.name, sum(c[0] for c in counts), "right of", sum(c[1] for c in counts), flush=True)


if __name__ == "__main__":
    main()
