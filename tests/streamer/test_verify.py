"""`streamer verify` on a tiny random checkpoint saved by transformers, whole and broken on purpose."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration

from model.checkpoint import save_checkpoint
from model.config import AttentionPolicy, DecoderConfig
from model.evaluation import verify
from model.evaluation.verify import Mark, Part, Report
from model.families.family import FAMILIES
from model.serving.runner import NANO
from streamer.cli.main import main
from tests.model.qwen35 import TEXT, VISION, scatter, theirs
from tests.model.small import SMALL, build, small

PADS = {"<|image_pad|>": 248_056, "<|video_pad|>": 248_057}
NAMED = {"<|endoftext|>": 248_044, "<|im_start|>": 248_045, "<|im_end|>": 248_046, "<|vision_start|>": 248_053,
         "<|vision_end|>": 248_054, **PADS, "<think>": 248_068, "</think>": 248_069}  # fmt: skip
VOCABULARY = 248_072


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano's words, with Qwen3.5's special tokens in their own places."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ids = {f"{name.strip('<|>')}_token_id": NAMED[name] for name in ("<|vision_start|>", "<|vision_end|>")}
    ids |= {"image_token_id": PADS["<|image_pad|>"], "video_token_id": PADS["<|video_pad|>"]}
    text = {**TEXT, "vocab_size": VOCABULARY, "num_hidden_layers": 4}
    twin = Qwen3_5ForConditionalGeneration(theirs(text, VISION, **ids)).eval()
    scatter(twin)
    twin.save_pretrained(folder)
    content = json.loads((NANO / "tokenizer.json").read_text())
    like = content["added_tokens"][0]
    words = content["model"]["vocab"]
    for token in content["added_tokens"]:
        words.pop(token["content"], None)
    taken = set(words.values())
    words |= {f"\u0120w{i}": i for i in range(VOCABULARY) if i not in taken and i not in NAMED.values()}
    content["added_tokens"] = [like | {"id": id, "content": name} for name, id in NAMED.items()]
    words |= NAMED
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fewer pictures and tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(verify, "FIRST", 3)
    monkeypatch.setattr("streamer.cli.verify.FRAMES", 4)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unexamined(monkeypatch: pytest.MonkeyPatch) -> None:
    """An examination that is passed, of what random weights answer."""
    monkeypatch.setattr(verify, "examined", lambda runner, shown, last=None: Mark(shown, 12, 12, 12))


def found(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["verify", str(folder), "--json", *options])
    told = capsys.readouterr()
    assert told.out, told.err
    return code, json.loads(told.out)


@pytest.mark.usefixtures("unexamined")
def test_a_checkpoint_that_computes_as_transformers_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = found(folder, capsys)
    assert code == 0 and report["trusted"] and report["verdict"].startswith("Trust it:"), report
    assert [part["name"] for part in report["parts"]] == [
        "the vision tower", "the logits after a step", "the logits after 2 steps",
    ]  # fmt: skip
    assert max(part["error"] for part in report["parts"]) < 1e-5 and report["ours"] == report["theirs"] != ""
    assert len(report["marks"]) == 4


@pytest.mark.usefixtures("unexamined")
@pytest.mark.parametrize("rolled", ["", "o_norm.weight", "a_proj.weight", "k_conv1d.weight"])
def test_infinitevl_is_held_to_parts_that_transformers_has(
    rolled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, and with one kind of tensor misplaced by our loader."""
    config = small(
        decoder=replace(SMALL.decoder, head_dim=12, mrope_section=(2, 2, 2)), policy=AttentionPolicy(0, 8192)
    )
    save_checkpoint(build(config), NANO / "tokenizer.json", tmp_path, torch.float32)
    family = FAMILIES["infinitevl"]

    def misplaced(name: str, value: Tensor, config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
        for ours, tensor in family.convert(name, value, config):
            yield ours, tensor.roll(1, 0) if rolled and ours.endswith(rolled) else tensor

    monkeypatch.setitem(FAMILIES, "infinitevl", replace(family, convert=misplaced))
    code, report = found(tmp_path, capsys)
    assert code == int(bool(rolled)) and len(report["parts"]) == 3
    if rolled:
        assert report["verdict"].startswith("Do not trust it here: the logits after a step")
    else:
        assert max(part["error"] for part in report["parts"]) < 1e-5 and report["ours"] == report["theirs"]


@pytest.mark.nightly
@pytest.mark.usefixtures("unexamined")
def test_bfloat16_is_held_to_what_transformers_is_off_in_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = found(folder, capsys, "--dtype", "bfloat16")
    assert code == 0, report
    assert all(1e-3 < part["allowed"] < 0.2 and part["error"] > 1e-4 for part in report["parts"])


@pytest.mark.nightly
def test_random_weights_compute_rightly_and_are_not_to_be_trusted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = found(folder, capsys)
    assert (code, report["trusted"]) == (1, False) and all(part["error"] < 1e-5 for part in report["parts"])
    assert report["verdict"].startswith("Do not trust its answers: it computes what transformers does, but")


@pytest.mark.parametrize(
    ("now", "before", "trusted", "verdict"),
    [
        (12, 12, True, "Trust it: it computes what transformers does; it names 12 of 12 colours that it sees"),
        (8, 8, True, "Trust it: "),
        (12, 7, False, "Do not trust what it says of the past: it computes what transformers does and names 12 of 12"),
        (7, 12, False, "Do not trust its answers: it computes what transformers does, but the examination can't tell"),
        (3, 3, False, "Do not trust its answers: "),
    ],
)
def test_no_examination_that_guesses_would_pass_earns_trust(now: int, before: int, trusted: bool, verdict: str) -> None:
    marks = Mark("the whole stream", now, before, 12), Mark("the last four frames", 12, 12, 12)
    report = Report("x", "float32", (Part("the logits", 1e-6, 1e-4),), "a", "a", marks)
    assert report.trusted == trusted and report.verdict.startswith(verdict)
    assert not replace(report, parts=()).trusted
    assert not replace(report, parts=(Part("the logits", float("nan"), 1e-4),)).trusted


class Eyes:
    """Sees colours; of the past it answers with the first or, where `blind`, with what is seen now."""

    def __init__(self, blind: bool) -> None:
        self.blind = blind
        self.tokenizer = SimpleNamespace(
            encode=lambda word: [list(verify.COLOURS).index(word)], encode_question=lambda text: [text == verify.NOW]
        )

    def open(self, slot: int, height: int, width: int) -> None:
        self.seen: list[int] = []

    def see(self, slots: Sequence[int], steps: Sequence[Sequence[np.ndarray]], seconds: Sequence[float]) -> None:
        self.seen.append(list(verify.COLOURS.values()).index(tuple(steps[0][-1][5, 5])))

    def moment(self, seconds: Sequence[float]) -> float:
        return seconds[0]

    def fork(self, source: int, slot: int) -> None:
        pass

    def read(self, slots: Sequence[int], tokens: Sequence[Sequence[bool]]) -> tuple[None, Tensor]:
        said = self.seen[-1] if self.blind or tokens[0][0] else self.seen[0]
        return None, torch.eye(len(verify.COLOURS))[said][None]


def test_the_examination_tells_memory_from_sight() -> None:
    runner: Any = Eyes(blind=False)
    assert verify.examined(runner, "all") == Mark("all", 12, 12, 12)
    for mark in (verify.examined(runner, "last", verify.LAST), verify.examined(Eyes(blind=True), "all")):  # type: ignore[arg-type]
        assert mark.sees and not mark.remembers, mark
    for column in zip(*verify.scenes(), strict=True):
        assert all(column.count(colour) == 3 for colour in verify.COLOURS)


def test_a_terminal_is_shown_how_far_an_examination_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes minutes on a CPU."""
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", shown)
    verify.examined(Eyes(blind=False), "the whole stream")  # type: ignore[arg-type]
    assert re.search(r"the whole stream: +0%\|.* 0/12", shown.getvalue())


def test_one_whose_value_heads_are_misplaced_is_not_to_be_trusted(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES["qwen3_5"]

    def tiled(name: str, value: Tensor, config: DecoderConfig) -> Iterable[tuple[str, Tensor]]:
        for ours, tensor in family.convert(name, value, config):
            yield ours, tensor.roll(1, 0) if ours.endswith("o_norm.weight") else tensor

    monkeypatch.setitem(FAMILIES, "qwen3_5", replace(family, convert=tiled))
    code, report = found(folder, capsys)
    assert (code, report["trusted"]) == (1, False) and report["verdict"].startswith("Do not trust it here: the logits")
    assert not report["marks"]


@pytest.mark.nightly
def test_one_with_a_weight_that_is_no_number_is_not_to_be_trusted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = Qwen3_5ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        twin.model.language_model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    twin.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    code, report = found(tmp_path, capsys)
    assert (code, report["trusted"]) == (1, False)
