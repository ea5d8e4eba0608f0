"""Qwen3.5 against transformers: the tower, positions, logits, checkpoints, and the mistakes that a loose test lets pass."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import torch.nn.functional as functional
from huggingface_hub.errors import GatedRepoError
from torch import Tensor
from transformers import Qwen3_5ForConditionalGeneration

from model.cache import SequenceCache
from model.checkpoint import CheckpointError, fill, locate, read_config
from model.config import FULL, PRESETS, AttentionPolicy, ConfigError
from model.families.family import FAMILIES, parse
from model.families.infinitevl import InfiniteVL
from model.layers.attention import Attention
from model.layers.delta_net import GatedDeltaNet
from model.serving.runner import NANO
from model.state import StreamState

from .qwen35 import IDS, configuration, converted, of_preset, ours, twin
from .small import error, patches

PAD, VIDEO, START, END = (IDS[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end"))
PICTURE, CLIP = (6, 10), (8, 4)


@pytest.mark.parametrize("grid", [(4, 4), (6, 10), (12, 2)])
@torch.no_grad()
def test_the_tower(grid: tuple[int, int]) -> None:
    """Grids that are not square, three temporal patches at once."""
    theirs = twin()
    model = ours(theirs)
    x = patches(model.config.vision, 3, grid=grid)
    oracle = theirs.model.visual(x.flatten(0, 1), torch.tensor([[3, *grid]])).pooler_output
    assert error(model.visual(x, *grid).flatten(0, 1), oracle) <= 1e-5


def prompt() -> tuple[list[int], Tensor, Tensor]:
    """Text, a picture, text, three steps of video with their times, a question; and the pixels of both."""
    config = ours(twin()).config.vision
    image = [START, *[PAD] * (PICTURE[0] * PICTURE[1] // 4), END]
    steps = [[20 + i, 21, 22, START, *[VIDEO] * (CLIP[0] * CLIP[1] // 4), END] for i in range(3)]
    ids = [7, 8, *image, 9, 10, 11, *[token for step in steps for token in step], *range(40, 52)]
    return ids, patches(config, 1, grid=PICTURE, seed=1)[0], patches(config, 3, grid=CLIP, seed=2)


def asked(theirs: Qwen3_5ForConditionalGeneration) -> dict[str, Tensor]:
    """The prompt as transformers takes it."""
    ids, image, video = prompt()
    return {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([[int(i == PAD) + 2 * int(i == VIDEO) for i in ids]]),
        "pixel_values": image,
        "image_grid_thw": torch.tensor([[1, *PICTURE]]),
        "pixel_values_videos": video.flatten(0, 1),
        "video_grid_thw": torch.tensor([[3, *CLIP]]),
    }


def positions(ids: list[int]) -> Tensor:
    """By the sheet's words: text counts on all axes, a grid begins where text would go on, what follows after its longer side."""
    found, at = [], 0
    i = 0
    while i < len(ids):
        if ids[i] in (PAD, VIDEO):
            rows, columns = (side // 2 for side in (PICTURE if ids[i] == PAD else CLIP))
            found += [(at, at + row, at + column) for row in range(rows) for column in range(columns)]
            at, i = at + max(rows, columns), i + rows * columns
        else:
            found.append((at, at, at))
            at, i = at + 1, i + 1
    return torch.tensor(found).T


def embedded(model: InfiniteVL) -> Tensor:
    """The prompt's embeddings, pictures in their places, [1, n, hidden]."""
    ids, image, video = prompt()
    tokens = torch.tensor(ids)
    x = model.model.embed_tokens(tokens)
    x[tokens == PAD] = model.visual(image[None], *PICTURE).flatten(0, 1)
    x[tokens == VIDEO] = model.visual(video, *CLIP).flatten(0, 1)
    return x[None]


def whole(model: InfiniteVL) -> Tensor:
    """Every logit of the prompt, [n, vocabulary]."""
    x = embedded(model)
    cache = SequenceCache(model.config.decoder, FULL, 1, x.device, x.dtype)
    return model.logits(model.model(x, positions(prompt()[0])[:, None], cache))[0]


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_prompt_of_picture_video_and_text(tied: bool) -> None:
    theirs = twin(tied)
    told = asked(theirs)
    grids = {key: told[key] for key in ("image_grid_thw", "video_grid_thw")}
    found, _ = theirs.model.get_rope_index(told["input_ids"], told["mm_token_type_ids"], **grids)
    assert (found[:, 0] == positions(prompt()[0])).all()
    assert error(whole(ours(theirs)), theirs(**told).logits[0]) <= 2e-5


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("qwen3.5-")])
def test_published_sizes(name: str) -> None:
    """Names, shapes and totals of every module; transformers leaves out the draft head (`mtp.`), and so do we."""
    with torch.device("meta"):
        model, theirs = InfiniteVL(PRESETS[name]), Qwen3_5ForConditionalGeneration(of_preset(name))
    weights = converted(theirs)
    if PRESETS[name].decoder.tie_word_embeddings:
        weights.pop("lm_head.weight")
    assert {key: x.shape for key, x in weights.items()} == {key: x.shape for key, x in model.named_parameters()}
    decoder = model.config.decoder
    width, queries, keys = decoder.hidden_size, decoder.num_attention_heads * 256, decoder.num_key_value_heads * 256
    drafts = 2 * width**2 + width * (3 * queries + 2 * keys + 3 * decoder.intermediate_size + 5) + 2 * 256
    totals = {
        "0.8b": 873_438_784, "2b": 2_274_069_824, "4b": 4_659_865_088, "9b": 9_653_104_368, "27b": 27_781_427_952,
    }  # fmt: skip
    size = name.removeprefix("qwen3.5-")
    assert sum(x.numel() for x in model.parameters()) == totals[size] - drafts
    assert not list(FAMILIES["qwen3_5"].convert("mtp.fc.weight", torch.empty(2, 4), decoder))


OPENING, QUESTION = [60, 61, 62], [*range(70, 82)]
BEFORE = [[20, 21, START], [22, START], [23, 24, 25, START], [26, 21, START], [27, 28, START], [29, 30, 21, START]]
"""Times of steps, of unlike lengths."""
WINDOWED = replace(
    configuration(twin()),
    policy=AttentionPolicy(sinks=6, window=30),
    tokens_per_frame=8,
    step_text=6,
    position_cap=None,
)


def told(before: list[int]) -> list[int]:
    """A step's words as `ingest` takes them."""
    words = [*before, END]
    return [len(before), len(words), *words, *[0] * (WINDOWED.step_text - len(words))]


def stream(model: InfiniteVL, origin: int = 0) -> Tensor:
    """A stream of a few steps beside another that is a step behind it, and a question, token by token: its logits."""
    state, slots = StreamState.allocate(model.config, 2), torch.tensor([1, 0])
    state.origin[:] = origin
    video, now = patches(model.config.vision, len(BEFORE), grid=CLIP, seed=2), torch.zeros(2, dtype=torch.float64)
    model.open(state, slots, OPENING)
    model.see(video[:1], CLIP, now[:1], state, slots[:1], torch.tensor([told(BEFORE[0])]))
    for i in range(1, len(BEFORE)):
        text = torch.tensor([told(BEFORE[i]), told(BEFORE[i - 1])])
        model.see(video[[i, i - 1]], CLIP, now, state, slots, text)
    return torch.cat([model.read(torch.tensor([[token]]), state, slots[:1]) for token in QUESTION])


@torch.no_grad()
@pytest.mark.parametrize("in_place", [0, 10**9])
def test_step_by_step_across_the_rings_wrap(in_place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against transformers over the whole sequence, under eq. 8's mask written out; keys are copied, or read where they lie."""
    monkeypatch.setattr("model.cache.IN_PLACE", in_place)
    monkeypatch.setattr("model.ops.attention.SCORES", 256)
    theirs, model, rows, columns = twin(), ours(twin(), WINDOWED), CLIP[0] // 2, CLIP[1] // 2
    video = model.visual(patches(model.config.vision, len(BEFORE), grid=CLIP, seed=2), *CLIP)
    embed, at = model.model.embed_tokens, len(OPENING)
    x, where = [embed(torch.tensor(OPENING))], [(i, i, i) for i in range(at)]
    for before, seen in zip(BEFORE, video, strict=True):
        x += [embed(torch.tensor(before)), seen, embed(torch.tensor([END]))]
        where += [(at + i,) * 3 for i in range(len(before))]
        at += len(before)
        where += [(at, at + row, at + column) for row in range(rows) for column in range(columns)]
        at += max(rows, columns)
        where.append((at, at, at))
        at += 1
    x.append(embed(torch.tensor(QUESTION)))
    where += [(at + i,) * 3 for i in range(len(QUESTION))]
    i, j = torch.arange(len(where))[:, None], torch.arange(len(where))
    shown = (j <= i) & ((j < 6) | (i - j < 30))
    assert len(where) > 2 * (6 + 30)
    hidden = theirs.model.language_model(
        inputs_embeds=torch.cat(x)[None],
        position_ids=torch.tensor(where).T[:, None],
        attention_mask={
            "full_attention": torch.where(shown, 0.0, -torch.inf)[None, None],
            "linear_attention": None,
        },
    ).last_hidden_state
    oracle = theirs.lm_head(hidden)[0, -len(QUESTION) :]
    assert error(stream(model), oracle) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("in_place", [0, 10**9])
def test_a_streams_age_changes_nothing(in_place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.cache.IN_PLACE", in_place)
    model = ours(twin(), WINDOWED)
    assert error(stream(model, origin=10**9), stream(model)) <= 1e-5


def test_sinks_stand_no_farther_back_than_the_cap() -> None:
    """All three axes are moved, so that their distances stay."""
    state, slots = StreamState.allocate(replace(WINDOWED, position_cap=50), 1), torch.tensor([0])
    sinks = torch.tensor([[[0, 1, 2], [0, 1, 3], [0, 1, 4]]])
    state.next[0] = 45
    assert (state.placed(slots, sinks) == sinks).all()
    state.next[0] = 1045
    assert (state.placed(slots, sinks) == sinks + 995).all()


@pytest.mark.parametrize(
    ("sizes", "window", "megabytes"),
    [(("0.8b", "2b"), 2_048, 47.8), (("0.8b", "2b"), 7_936, 120.2), (("4b", "9b"), 2_048, 127.0),
     (("4b", "9b"), 7_936, 319.9), (("27b",), 2_048, 304.9), (("27b",), 7_936, 690.8)],
)  # fmt: skip
def test_what_a_stream_keeps(sizes: tuple[str, ...], window: int, megabytes: float) -> None:
    """As the published sizes give by hand; the ring has a step's rows more, and one for padding."""
    for size in sizes:
        config = replace(PRESETS[f"qwen3.5-{size}"], policy=AttentionPolicy(sinks=256, window=window))
        state = StreamState.allocate(config, 1, "meta", torch.bfloat16)
        decoder = config.decoder
        kinds = decoder.layer_types.count("attention")
        more = (config.step_tokens + 1) * kinds * 2 * decoder.num_key_value_heads * decoder.head_dim * 2
        cursors = 3 * 256 * 8 + 6 * 8
        assert (state.bytes_per_slot - more - cursors) / 1e6 == pytest.approx(megabytes, abs=0.051)


def exact_for_tanh(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    exact = functional.gelu
    patch.setattr(functional, "gelu", lambda x, approximate="none": exact(x))


def tanh_for_exact(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    exact = functional.gelu
    patch.setattr(functional, "gelu", lambda x, approximate="none": exact(x, approximate="tanh"))


def corners_not_aligned(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    resample = functional.interpolate
    patch.setattr(functional, "interpolate", lambda x, size, **how: resample(x, size, **how | {"align_corners": False}))


def axes_in_sections(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    model.model.config = replace(model.model.config, mrope_interleaved=False)


def positions_without_grids(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    patch.setattr(sys.modules[__name__], "positions", lambda ids: torch.arange(len(ids)).expand(3, -1))


def queries_then_gates(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    for layer, theirs in zip(model.model.layers, twin().model.language_model.layers, strict=True):
        if isinstance(layer.self_attn, Attention):
            queries, gates = theirs.self_attn.q_proj.weight.chunk(2)
            layer.self_attn.q_proj.weight.copy_(queries)
            layer.self_attn.g_proj.weight.copy_(gates)


def tiled_value_heads(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    """By swapping heads of values, rather than which keys they read."""
    repeat = Tensor.repeat_interleave

    def tiled(x: Tensor, times: int, axis: int) -> Tensor:
        return x.repeat(1, 1, times, 1) if x.dim() == 4 and axis == -2 else repeat(x, times, axis)

    patch.setattr(Tensor, "repeat_interleave", tiled)


def another_eps(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    for layer in model.model.layers:
        if isinstance(layer.self_attn, GatedDeltaNet):
            layer.self_attn.o_norm.eps = 1e-5


def one_folded_into_bfloat16(patch: pytest.MonkeyPatch, model: InfiniteVL) -> None:
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight") and not name.startswith("visual."):
            weight.copy_(weight.bfloat16())


MISTAKES = (
    exact_for_tanh, tanh_for_exact, corners_not_aligned, axes_in_sections, positions_without_grids, queries_then_gates,
    tiled_value_heads, another_eps, one_folded_into_bfloat16,
)  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda make: make.__name__)
@torch.no_grad()
def test_quiet_mistakes_are_caught(
    mistake: Callable[[pytest.MonkeyPatch, InfiniteVL], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would pass a loose test; all are outside the bounds of the tower or of the whole prompt."""
    theirs, model = twin(), ours(twin())
    logits, image = theirs(**asked(theirs)).logits[0], prompt()[1]
    tokens = theirs.model.visual(image, torch.tensor([[1, *PICTURE]])).pooler_output
    mistake(monkeypatch, model)
    assert error(model.visual(image[None], *PICTURE)[0], tokens) > 5e-5 or error(whole(model), logits) > 1e-4


def saved(folder: Path, tied: bool, kind: torch.dtype = torch.float32) -> Qwen3_5ForConditionalGeneration:
    """What transformers writes of a tiny one, a tokenizer beside it, and the model as it was written."""
    theirs = copy.deepcopy(twin(tied))
    for name, parameter in theirs.named_parameters():
        if not name.endswith(("A_log", "linear_attn.norm.weight")):
            parameter.data = parameter.data.to(kind)
    theirs.save_pretrained(folder, max_shard_size="1MB")
    small = json.loads((NANO / "tokenizer.json").read_text())
    small["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(small))
    return theirs


@pytest.mark.parametrize(("tied", "kind"), [(True, torch.float32), (False, torch.float32), (True, torch.bfloat16)])
@torch.no_grad()
def test_what_transformers_saves_is_loaded(tied: bool, kind: torch.dtype, tmp_path: Path) -> None:
    """In float32, whatever is stored; in bfloat16 the norms and the decay stay float32."""
    theirs = saved(tmp_path, tied, kind)
    config = read_config(tmp_path)
    with torch.device("meta"):
        model = InfiniteVL(config)
    fill(model, tmp_path, torch.device("cpu"), torch.float32)
    assert error(whole(model.eval()), theirs.float()(**asked(theirs)).logits[0]) <= 2e-5
    fill(model, tmp_path, torch.device("cpu"), torch.bfloat16)
    wide = {name for name, x in model.named_parameters() if x.dtype == torch.float32}
    assert {name.split(".")[-2] for name in wide if name.endswith("weight")} == {
        "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "o_norm", "norm",
    }  # fmt: skip
    assert not any(name.startswith("visual.") for name in wide)
    assert {name.split(".")[-1] for name in wide} == {"weight", "A_log", "dt_bias"}


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "qwen3_5_moe"}, "mixture of experts, which is not supported: choose a dense size"),
    ({"text_config.model_type": "qwen3_5_moe_text"}, "mixture of experts, which is not supported: choose a dense size"),
    (
        {"quantization_config": {"quant_method": "gptq"}},
        r"quantised \(gptq\).* take the repository without that suffix",
    ),
    ({"text_config.head_dim": None}, "text_config.head_dim is missing: its value can't be guessed"),
    ({"text_config.layer_types": None}, "layer_types is missing"),
    ({"text_config.linear_num_value_heads": None}, "linear_num_value_heads is missing"),
    ({"text_config.rope_parameters.rope_theta": None}, "rope_theta is missing"),
    ({"text_config.rope_parameters.mrope_section": None}, "mrope_section is missing"),
    ({"text_config.rope_parameters.partial_rotary_factor": None}, "partial_rotary_factor is missing"),
    ({"text_config.rope_parameters.rope_type": "yarn"}, "rope_type 'yarn' is not supported: only 'default' is"),
    ({"text_config.head_dim": "256"}, "head_dim '256' must be a whole number of at least 1"),
    (
        {"text_config.head_dim": 128},
        r"head_dim 128 and .* turn 32 of a head's values, which mrope_section \[11, 11, 10\]",
    ),
    ({"text_config.rope_parameters.mrope_section": ["a", 1, 2]}, r"mrope_section \['a', 1, 2\] does not part"),
    (
        {"text_config.linear_num_value_heads": 5},
        "linear_num_value_heads 5 must be a multiple of linear_num_key_heads 2: take the config.json that came",
    ),
    (
        {"text_config.layer_types": ["sliding_attention", "linear_attention"] * 4},
        "layer_types names 'sliding_attention', which is not supported: only full_attention and linear_attention are",
    ),
    ({"text_config.layer_types": [["full_attention"]] * 8}, r"layer_types names \['full_attention'\], which is not"),
    ({"tie_word_embeddings": None, "text_config.tie_word_embeddings": None}, "tie_word_embeddings is missing"),
    ({"vision_config.deepstack_visual_indexes": [5]}, r"deepstack_visual_indexes \[5\] is not supported"),
    ({"vision_config": None}, "vision_config is missing"),
    (
        {"text_config.rope_parameters.rope_theta": math.inf},
        "rope_theta inf must be a number above 0 and below infinity",
    ),
    ({"video_token_id": 300}, "video_token_id 300 is outside of the vocabulary of 300: take the config.json"),
    ({"text_config.rms_norm_eps": 10**400}, "must be a number above 0 and below infinity"),
]


@pytest.mark.parametrize(("changes", "told"), FAULTS, ids=[told[:24] for _, told in FAULTS])
def test_nothing_is_guessed(changes: dict[str, Any], told: str) -> None:
    found = copy.deepcopy(twin().config.to_dict())
    for path, value in changes.items():
        *owners, key = path.split(".")
        owner = found
        for name in owners:
            owner = owner[name]
        owner[key] = value
    with pytest.raises(ConfigError, match=told):
        parse(found)


@pytest.mark.parametrize(
    "name", ["linear_attn.in_proj_qkv.weight", "linear_attn.conv1d.weight", "self_attn.q_proj.weight"]
)
def test_a_lone_number_in_a_matrix_s_place_is_named(name: str) -> None:
    config = configuration(twin())
    with pytest.raises(ValueError, match="its 0 rows are not"):
        list(FAMILIES[config.family].convert(f"model.language_model.layers.0.{name}", torch.zeros(()), config.decoder))


def test_a_configuration_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deep"):
        read_config(tmp_path)


def test_tensors_of_another_size_are_named(tmp_path: Path) -> None:
    saved(tmp_path, tied=True)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    found["text_config"]["num_attention_heads"] = 6
    path.write_text(json.dumps(found))
    with torch.device("meta"):
        model = InfiniteVL(read_config(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"q_proj.weight \(2048, 64\): its 2048 rows are not twice 6 heads of 256"
    ):
        fill(model, tmp_path, torch.device("cpu"), torch.float32)


def test_what_is_no_checkpoint_to_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model-Q4_K_M.gguf").touch()
    with pytest.raises(
        CheckpointError, match=r"holds GGUF files, which are not read: take the repository with \*.safetensors"
    ):
        read_config(tmp_path)

    def gated(*_: Any, **__: Any) -> str:
        raise GatedRepoError("no", response=httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", gated)
    with pytest.raises(CheckpointError, match="some/model is gated: accept its terms at https://huggingface"):
        locate("some/model")
