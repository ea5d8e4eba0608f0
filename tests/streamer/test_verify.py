"""`streamer verify` on a tiny random checkpoint saved by transformers, whole and broken on purpose."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration

from model.config import DecoderConfig
from model.evaluation import verify
from model.families.family import FAMILIES
from model.serving.runner import NANO
from streamer.cli.main import main
from tests.model.qwen35 import TEXT, VISION, scatter, theirs

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
    """What random weights answer is of no interest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(verify, "SCENES", 1)
    monkeypatch.setattr(verify, "STEPS", 3)
    monkeypatch.setattr(verify, "FIRST", 3)
    monkeypatch.setattr("streamer.cli.verify.FRAMES", 4)
    yield
    torch.set_num_threads(threads)


def found(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:  # type: ignore[type-arg]
    code = main(["verify", str(folder), "--json"])
    told = capsys.readouterr()
    assert told.out, told.err
    return code, json.loads(told.out)


def test_a_checkpoint_that_computes_as_transformers_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = found(folder, capsys)
    assert code == 0 and report["trusted"], report
    assert [part["name"] for part in report["parts"]] == [
        "the vision tower", "the logits after a step", "the logits after 2 steps",
    ]  # fmt: skip
    assert max(part["error"] for part in report["parts"]) < 1e-5 and report["ours"] == report["theirs"] != ""
    assert len(report["marks"]) == 4 and "colours that it sees" in report["verdict"]


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
