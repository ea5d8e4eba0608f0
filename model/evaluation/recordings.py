"""Half an hour of the made world over real backgrounds as a recording of two frames a second, asked about under Offline and Online.

`python -m model.evaluation.recordings --minutes 30 --questions 60`

Both read the same steps, one a second, and are asked the same questions at the same moments; answers are marked by how long ago the
evidence was last seen.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.evaluation.score import GRID, MEMORY, NOW, Paper, ask
from model.policy import RetrievalPolicy
from model.serving.runner import Runner, load_runner
from model.serving.sampling import Sampling
from model.world.generate import draw_scene
from model.world.layout import layout
from model.world.questions import Question, normalise
from model.world.render import Assets, Painter
from model.world.scene import Profile

TIMES = 6
"""Moments at which questions are asked, evenly spread."""
THINGS = 2
"""A minute."""
AGES = {"now": 0, "1 min": 60, "5 min": 300, "older": 10**9}
"""Seconds since the evidence was last seen, at most; "none" where there is none."""
WORDS = 24


def answer(runner: Runner, question: Question) -> str:
    """What the model says, greedily, of what slot 0 has seen."""
    runner.fork(0, 1)
    tokens = [runner.prefill(1, runner.tokenizer.encode_question(question.text), Sampling())]
    while tokens[-1] not in runner.tokenizer.stops and len(tokens) < WORDS:
        tokens += runner.decode([1], tokens[-1:], [Sampling()])
    return runner.tokenizer.decode(tokens)


@torch.inference_mode()
def take(runner: Runner, x: Tensor, second: int) -> None:
    """One step, `x` [1, tokens, hidden] from the vision tower."""
    seconds = torch.tensor([second + 0.5], dtype=torch.float64, device=x.device)
    runner.model.ingest(x, GRID, seconds, runner.state, torch.tensor([0], device=x.device))


def examine(model: str, device: str, minutes: float, questions: int, seed: int) -> dict[str, Any]:
    """Right answers and questions by age and policy, and the seconds that reading took each."""
    policies = {"offline": RetrievalPolicy(), "online": None}
    runners = {name: load_runner(model, device=device, slots=2, policy=policy) for name, policy in policies.items()}
    painter, rng, steps = Painter(Assets.load(), device), np.random.default_rng(seed), round(60 * minutes)
    things = max(3, round(THINGS * minutes))
    profile = Profile(things=(things, things), real=True)
    paper = Paper("recording", steps, 1, questions // TIMES, (*NOW, *MEMORY), profile, gone=0)
    scene = draw_scene(rng, steps, "test", painter.gallery, profile)
    patches, _ = painter.patches(layout([scene]), seed, torch.bfloat16)  # half of what a float32 hour would take
    asked_at = {round(steps * (i + 1) / TIMES) - 1 for i in range(TIMES)}
    right: dict[str, dict[str, list[int]]] = {name: {age: [0, 0] for age in ("none", *AGES)} for name in runners}
    took = dict.fromkeys(runners, 0.0)
    for runner in runners.values():
        runner.open(0, *(side * runner.config.vision.patch_size for side in GRID))
    for step in range(steps):
        with torch.inference_mode():
            x = runners["offline"].model.encode(patches[step : step + 1].to(runners["offline"].dtype), GRID)
        for name, runner in runners.items():
            began = time.perf_counter()
            take(runner, x, step)
            took[name] += time.perf_counter() - began
        for question in ask(paper, rng, scene, step, runner.tokenizer) if step in asked_at else ():
            age = "none" if question.age < 0 else next(name for name, most in AGES.items() if question.age <= most)
            for name, runner in runners.items():
                marks = right[name][age]
                marks[0] += normalise(answer(runner, question)) == normalise(question.answer)
                marks[1] += 1
    tokens = int(runners["offline"].state.length[0])
    return {"minutes": minutes, "things": len(scene.visits), "tokens": tokens, "right": right, "decoder_s": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=2026)
    given = parser.parse_args()
    print(json.dumps(examine(given.model, given.device, given.minutes, given.questions, given.seed), indent=1))


if __name__ == "__main__":
    main()
