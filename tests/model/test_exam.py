import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from tqdm import tqdm

from model.checkpoint import load_checkpoint
from model.config import nano
from model.evaluation import long_streams, run
from model.evaluation.report import facts, figures, kinds, table
from model.evaluation.score import (
    GRID,
    HELD_OUT,
    MEMORY,
    NOW,
    Exam,
    Marks,
    Paper,
    alike,
    compose,
    correct,
    score,
    watch,
)
from model.families.infinitevl import InfiniteVL
from model.serving.runner import NANO
from model.state import StreamState
from model.tokenizer import Tokenizer
from model.training.dataset import TOKENIZER
from model.world.questions import Question
from model.world.render import Assets, Painter
from model.world.scene import Profile
from model.world.tokenise import LENGTH


def small() -> InfiniteVL:
    """The nano's sizes outside, little inside; a head of its own, or it would say the prompt's last line break until its room is full."""
    whole = nano()
    vision = replace(whole.vision, depth=1, hidden_size=48, num_heads=1, intermediate_size=64, out_hidden_size=64)
    vision = replace(vision, fullatt_block_indexes=(0,))
    decoder = replace(
        whole.decoder, hidden_size=64, intermediate_size=64, num_hidden_layers=4, layer_types=(), num_attention_heads=1,
        num_key_value_heads=1, num_linear_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return InfiniteVL(replace(whole, vision=vision, decoder=decoder)).eval()


@pytest.fixture(scope="module")
def network() -> InfiniteVL:
    return small()


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(Assets.load(), "cpu")


def examination(network: InfiniteVL, painter: Painter) -> Exam:
    tokenizer = Tokenizer.load(TOKENIZER, nano())
    return Exam(network, painter, tokenizer, Marks(), tqdm(disable=True))


@pytest.mark.slow
def test_every_part_is_examined_and_every_row_is_told(network, painter, monkeypatch):
    monkeypatch.setattr(long_streams, "SEGMENT", 8)
    monkeypatch.setattr(long_streams, "MINUTE", 8)
    monkeypatch.setattr(long_streams, "CUT", 8)
    monkeypatch.setattr(long_streams, "LONG", 24)
    monkeypatch.setattr(long_streams, "EVIDENCE", 12)
    monkeypatch.setattr(long_streams, "EMPTY", 8)
    exam = examination(network, painter)
    for paper in run.papers(quick=True):
        gap, few = max(0, paper.profile.gap - paper.steps + 12), min(8, paper.questions)
        short = replace(paper, steps=12, streams=1, questions=few, gone=4, profile=replace(paper.profile, gap=gap))
        score(exam, short, 3)
    long_streams.by_clock(exam, 1, 12, {"10 s": 1}, 3)
    long_streams.long_streams(exam, 1, 4, 3)
    papers = {paper for paper, _, _, _ in exam.marks.counts}
    assert papers >= {paper.name for paper in run.papers(quick=True)} - {
        "first second 256",
        "first second 512",
        "first second 1500",
    }
    assert papers >= {"clock 10 s", "first minute", "last minute"}
    assert {who for paper, _, _, who in exam.marks.counts if paper == "memory 256"} == {"model", "cleared", "glimpse"}
    assert all(kind in kinds(skill) for _, skill, kind, _ in exam.marks.counts)
    found = json.loads(json.dumps(facts(exam.marks, model="small")))
    assert sum(row["asked"] for row in found["rows"]) == sum(asked for _, asked in exam.marks.counts.values())
    # A row that nothing was asked for is there all the same, so that two runs can be laid side by side.
    nothing = facts(Marks(), model="small")

    def key(row):
        return row["paper"], row["skill"], row["kind"], row["candidate"]

    assert [key(row) for row in found["rows"]] == [key(row) for row in nothing["rows"]]
    assert list(found["figures"]) == list(nothing["figures"]) and nothing["rows"][0]["share"] is None
    text = "\n".join(table(exam.marks))
    assert text.count("state cleared") >= 7 and "last four frames" in text
    for skill in (*NOW, *MEMORY):
        assert f"| {skill}" in text


@pytest.mark.parametrize("kind", ["by the clock", "long streams"])
def test_each_stream_is_asked_by_its_own_chances(kind, network, painter, monkeypatch):
    """One scene more leaves the questions about the others as they were."""
    for name, steps in {"EVIDENCE": 12, "EMPTY": 8, "SEGMENT": 8, "MINUTE": 8, "CUT": 8, "LONG": 8}.items():
        monkeypatch.setattr(long_streams, name, steps)

    def asked(streams: int) -> list[list[Question]]:
        exam, found = examination(network, painter), []
        monkeypatch.setattr(exam, "mark", lambda paper, candidates, last, asked: found.extend(asked))
        if kind == "by the clock":
            long_streams.by_clock(exam, streams, 6, {"10 s": 0}, 3)
        else:
            long_streams.long_streams(exam, streams, 6, 3)
        return found

    one, two = asked(1), asked(2)
    assert len(one[0]) == 6 and two[0] == one[0] and two[1] != one[0]


def test_an_answer_is_right_but_for_articles_and_capitals(painter):
    """The oracle is what a slot says, token by token; the question's answer is then made that, nearly that or another."""
    network, tokenizer = load_checkpoint(NANO, device="cpu", dtype=torch.float32)
    network.eval().fuse()
    paper = replace(run.papers(quick=True)[0], streams=2, questions=6, skills=("what", "where"))
    chances = [np.random.default_rng((run.SEED, 6 + i)) for i in range(paper.streams)]
    scenes, asked = compose(paper, chances, painter.gallery, tokenizer)
    patches = Exam(network, painter, tokenizer, Marks(), None).patches(scenes, 0)
    seconds = torch.from_numpy(np.stack([scene.seconds for scene in scenes]))
    state, slots = StreamState.allocate(network.config, 2 * len(scenes)), torch.arange(len(scenes))
    with torch.inference_mode():
        network.open(state, slots)
        for step in range(paper.steps):
            network.see(patches[:, step], GRID, seconds[:, step], state, slots)

    def said(stream: int, text: str) -> str:
        fork = len(scenes)
        for _, tensor, axis in state.tensors():
            tensor.narrow(axis, fork, 1).copy_(tensor.narrow(axis, stream, 1))
        tokens, found = tokenizer.encode_question(text), []
        with torch.inference_mode():
            while not found or found[-1] != tokenizer.turn_end:
                best = network.read(torch.tensor([tokens]), state, torch.tensor([fork])).argmax(-1).item()
                found.append(best)
                tokens = [best]
        return tokenizer.decode(found[:-1])

    asked = [[replace(q, answer=said(i, q.text)) for q in each] for i, each in enumerate(asked)]
    memory = watch(network, patches, seconds, None)

    def found(change, judge):
        changed = [[replace(q, answer=change(q.answer)) for q in each] for each in asked]
        return judge(network, memory, seconds[:, -1], changed, tokenizer)

    def other_article(answer: str) -> str:
        return answer.replace("the ", "a ") if "the " in answer else answer.replace("a ", "the ")

    every = [[True] * len(each) for each in asked]
    assert found(str, correct) == found(str, alike) == every
    assert found(other_article, alike) == found(str.capitalize, alike) == every
    swapped = sum(other_article(q.answer) != q.answer for each in asked for q in each)
    assert swapped >= 3 and sum(not good for each in found(other_article, correct) for good in each) == swapped
    for wrong in (lambda answer: answer + "x", lambda answer: answer[:-1], lambda answer: f"{answer} too"):
        assert not any(good for each in found(wrong, alike) for good in each)
    ragged = [asked[0][:0], asked[1][:3]]
    assert alike(network, memory, seconds[:, -1], ragged, tokenizer) == [[], [True] * 3]


def test_an_answer_that_does_not_end_is_wrong():
    tokenizer = Tokenizer.load(TOKENIZER, nano())
    (mark,) = tokenizer.encode("!")
    asked = [[Question("what", "What do you see?", "a dog")]]

    class Says:
        """First what `said` holds, then marks that nobody counts, and in the end what ends it if `ends`."""

        def __init__(self, said: list[int], ends: bool) -> None:
            self.said, self.ends, self.size = said, ends, nano().decoder.vocab_size

        def answer(self, tokens, last, grid, memory, ends=None):
            begin = len(tokenizer.encode_question(asked[0][0].text))
            room = tokens.shape[-1] - begin
            said = (self.said + [mark] * LENGTH)[: room + 1]
            if self.ends:
                said[-2:] = [tokenizer.turn_end] * 2
            logits = torch.zeros(tokens.shape[-1], self.size)
            logits[torch.arange(begin - 1, tokens.shape[-1]), torch.tensor(said)] = 1
            return logits[None, None] if ends is None else logits[ends]

    last, dog = torch.zeros(1), tokenizer.encode("the dog")

    def right(said: list[int], ends: bool) -> bool:
        return alike(Says(said, ends), None, last, asked, tokenizer) == [[True]]

    assert right([*dog, tokenizer.turn_end], False) and right(dog, True)
    assert not right(dog, False) and not right([], False)


def test_figures_are_of_the_questions_they_name():
    marks = Marks()
    marks.counts["now", "is there", "yes", "model"] = [3, 4]
    marks.counts["now", "is there", "no", "model"] = [1, 4]
    marks.counts["now", "where", "never", "model"] = [1, 2]
    marks.counts["memory 128", "first", "", "model"] = [9, 10]
    marks.counts["memory 128", "first", "", "glimpse"] = [1, 10]
    found = figures(marks)
    assert found["now: is there, yes"] == [3, 4] and found["now: is there, no"] == [1, 4]
    assert found["now: where"] == [0, 0] and found["never seen, now"] == [1, 2]
    assert found["memory 128: all open questions"] == [9, 10]
    assert found["memory 128: all open questions, last four frames"] == [1, 10]
    assert found["memory: all open questions, above the last four frames"] == [8, 10]
    told = facts(marks)["figures"]["through H.264, daemon and websocket"]
    assert told["share"] is None and told["command"] == "streamer eval --through-video"


def test_devices_share_every_task_and_each_alone_keeps_its_order():
    whole = run.tasks(3, quick=False)
    assert run.share(whole, 0, 1) == whole
    parts = [run.share(whole, device, 4) for device in range(4)]
    assert sorted(task.name for part in parts for task in part) == sorted(task.name for task in whole)
    loads = [sum(task.steps for task in part) for part in parts]
    clock = next(task.steps for task in whole if task.name == "by the clock")
    assert max(loads) == clock and max(load for load in loads if load != clock) < 1.2 * min(loads)


def test_marks_of_several_devices_are_added():
    one, other = Marks(), Marks()
    one.counts["now", "what", "one", "model"] = [3, 4]
    other.counts["now", "what", "one", "model"] = [1, 2]
    other.counts["empty", "what", "empty", "model"] = [1, 1]
    assert Marks.of([one, other]).counts == {
        ("now", "what", "one", "model"): [4, 6],
        ("empty", "what", "empty", "model"): [1, 1],
    }


@pytest.mark.parametrize("kept", [(), ("phrasings",), ("things",), HELD_OUT])
def test_a_paper_holds_out_what_it_says(painter, kept):
    whole, paper = painter.gallery, Paper("now", 4, 1, 1, NOW, Profile(), held=kept)
    assert paper.split("phrasings") == ("test" if "phrasings" in kept else "train")
    found = paper.gallery(whole)
    assert found.fonts["train"] == found.fonts["test"] == whole.fonts["test" if "fonts" in kept else "train"]
    assert found.clips["test"] == whole.clips["test" if "grounds" in kept else "train"]


def test_a_sequence_beyond_the_horizon_is_what_a_slot_holds(network, monkeypatch):
    """At a slower pace, ten seconds past the horizon: questions read from the examination's memory and from a stream's slot agree."""
    monkeypatch.setattr(long_streams, "RATE", 4.0)
    config, steps = network.config, 282
    torch.manual_seed(1)
    seen = torch.randn(1, 8, 64, config.decoder.hidden_size)
    state, slot = StreamState.allocate(config, 1), torch.tensor([0])
    picks = [i % 8 for i in range(steps)]
    with torch.no_grad():
        network.open(state, slot)
        for step, pick in enumerate(picks):
            seconds = torch.tensor([(step + 0.5) / long_streams.RATE], dtype=torch.float64)
            positions = state.frame_positions(slot, seconds, 8, 8)
            network.advance(seen[:, pick], positions, state, slot, outputs=False)
        question = torch.tensor([[2, 5, 40, 41, 42, 6]])
        wanted = network.read(question, state, slot)
        memory = None
        for start in range(0, steps, 100):
            memory = long_streams.follow(network, seen[:, picks[start : start + 100]], start, memory)
        last = torch.tensor([60.0], dtype=torch.float64)
        found = network.answer(question[:, None], last, (16, 16), memory)[0, 0, -1]
    torch.testing.assert_close(found, wanted[0], atol=2e-3, rtol=1e-3)
    assert wanted.std() > 0.05


def test_parts_past_the_horizon_last_a_second_at_most():
    spans = list(long_streams.parts(700, 200))
    assert spans[0][0] == 700 and spans[-1][1] == 900
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    for start, stop in spans:
        assert long_streams.second(stop - 1) <= 60 or long_streams.second(start) == long_streams.second(stop - 1)
