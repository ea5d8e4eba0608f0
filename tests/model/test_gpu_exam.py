"""The trained nano examined through the slots it is served from: the reference anywhere, the engine in bf16 and fp8 on CUDA."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.evaluation.run import SEED, papers
from model.evaluation.score import GRID, Exam, Marks, Paper, compose, correct, watch
from model.families.infinitevl import InfiniteVL
from model.serving.runner import NANO
from model.state import StreamState
from model.tokenizer import Tokenizer
from model.world.questions import Question
from model.world.render import Assets, Painter
from model.world.tokenise import LENGTH

if TYPE_CHECKING:
    from model.serving.fused import FastInfiniteVL

PAPERS = {paper.name: paper for paper in papers(False)}
EACH = {"now": 16, "memory 128": 24}
"""Questions of a scene: more than an examination asks, since it is the arithmetic that is examined here."""
POINT = 0.01


class Examination(Exam):
    """A paper's scenes, painted, with their questions."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        network, tokenizer = load_checkpoint(NANO, device=device, dtype=dtype)
        network.eval().fuse()
        super().__init__(network, Painter(Assets.load(), device), tokenizer, Marks(), None)

    def draw(self, paper: Paper, first: int) -> tuple[Tensor, Tensor, list[list[Question]]]:
        """Patches [streams, steps, 256, 1176], seconds float64 [streams, steps] and questions [streams][each]."""
        chances = [np.random.default_rng((SEED, first + i)) for i in range(paper.streams)]
        scenes, asked = compose(paper, chances, self.painter.gallery, self.tokenizer)
        seconds = torch.from_numpy(np.stack([scene.seconds for scene in scenes])).to(self.device)
        return self.patches(scenes, first), seconds, asked


def through_slots(
    engine: InfiniteVL | FastInfiniteVL,
    dtype: torch.dtype,
    patches: Tensor,
    seconds: Tensor,
    asked: list[list[Question]],
    tokenizer: Tokenizer,
) -> list[list[bool]]:
    """As `correct`, but each stream in a slot, step by step, and each question in its fork, token by token."""
    streams, device, start = len(asked), patches.device, engine.config.vision_start_token_id
    state = StreamState.allocate(engine.config, 2 * streams, device, dtype)
    slots = torch.arange(streams, device=device)
    engine.read(torch.full((streams, 1), start, device=device), state, slots, torch.ones_like(slots))
    state.begin(slots)
    for step in range(patches.shape[1]):
        engine.see(patches[:, step], GRID, seconds[:, step], state, slots)
    found: list[list[bool]] = [[] for _ in asked]
    for number in range(max(map(len, asked))):
        for _, tensor, axis in state.tensors():
            tensor.narrow(axis, streams, streams).copy_(tensor.narrow(axis, 0, streams))
        chosen = {i: questions[number] for i, questions in enumerate(asked) if number < len(questions)}
        answers = {i: [*tokenizer.encode(question.answer), tokenizer.turn_end] for i, question in chosen.items()}
        tokens, counts = torch.zeros(streams, LENGTH, dtype=torch.int64), torch.zeros(streams, dtype=torch.int64)
        for i, question in chosen.items():
            prompt = tokenizer.encode_question(question.text)
            tokens[i, : len(prompt)], counts[i] = torch.tensor(prompt), len(prompt)
        right = dict.fromkeys(chosen, True)
        for place in range(max(map(len, answers.values()))):
            best = engine.read(tokens.to(device), state, slots + streams, counts.to(device)).argmax(-1).tolist()
            tokens, counts = torch.zeros(streams, 1, dtype=torch.int64), torch.zeros(streams, dtype=torch.int64)
            for i, answer in answers.items():
                if place < len(answer):
                    right[i] &= best[i] == answer[place]
                    # Greedy decoding reads this too as long as it is right, and then it does not matter any more.
                    tokens[i, 0], counts[i] = answer[place], 1
        for i, good in right.items():
            found[i].append(good)
    return found


def test_slots_answer_what_the_whole_sequence_answers() -> None:
    """Of every third question the answer is made a wrong one: whether it stands or falls must be the same both ways."""
    examination = Examination("cpu", torch.float32)
    paper = replace(PAPERS["now"], streams=2, questions=9)
    with torch.inference_mode():
        patches, seconds, asked = examination.draw(paper, 6)
        asked = [[replace(q, answer="rhubarb") if i % 3 == 0 else q for i, q in enumerate(each)] for each in asked]
        whole = correct(
            examination.network,
            watch(examination.network, patches, seconds, None),
            seconds[:, -1],
            asked,
            examination.tokenizer,
        )
        slots = through_slots(examination.network, torch.float32, patches, seconds, asked, examination.tokenizer)
    assert slots == whole
    assert not any(right for each in slots for right in each[::3])
    assert sum(map(sum, slots)) > 0.6 * 12


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_the_nano_in_fp8_is_within_a_point_of_its_accuracy() -> None:
    from model.evaluation.distributed import limit_autotuning
    from model.serving.fused import FastInfiniteVL

    limit_autotuning()
    half = torch.bfloat16
    examination = Examination("cuda", half)
    engines = {precision: FastInfiniteVL(examination.network, precision) for precision in ("model", "fp8")}
    right, total = dict.fromkeys(("plain", *engines), 0), 0
    for name, groups in (("now", 12), ("memory 128", 3)):
        paper = replace(PAPERS[name], streams=32, questions=EACH[name])
        for group in range(groups):
            with torch.inference_mode():
                patches, seconds, asked = examination.draw(paper, 32 * group)
                memory = watch(examination.network, patches, seconds, None)
                right["plain"] += sum(
                    map(sum, correct(examination.network, memory, seconds[:, -1], asked, examination.tokenizer))
                )
                for precision, engine in engines.items():
                    right[precision] += sum(
                        map(sum, through_slots(engine, half, patches, seconds, asked, examination.tokenizer))
                    )
            total += sum(map(len, asked))
        print(f"fp8 and the nano: right after {name}, of {total}:", right)
    assert total > 6000
    assert right["fp8"] >= right["model"] - POINT * total
    assert right["model"] >= right["plain"] - POINT * total
