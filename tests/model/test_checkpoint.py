"""Checkpoints out and in, and every way in which one can be wrong."""

import json
import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import CheckpointError, load_checkpoint, locate, save_checkpoint
from model.config import PRESETS, AttentionPolicy, ConfigError, InfiniteVLConfig, parse_config
from model.families.infinitevl import InfiniteVL
from model.serving.runner import NANO

from .small import DECODER, build, small

TOKENIZER = Path("model/nano/tokenizer.json")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder of a small model."""
    save_checkpoint(build(small()), TOKENIZER, tmp_path, torch.float32)
    return tmp_path


def shard(folder: Path, rename: Callable[[str], str] = str, count: int = 3) -> list[Path]:
    """Splits a folder's weights into shards with an index, tensors renamed."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    index = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({rename(name): weights[name] for name in names[i::count]}, folder / file)
        index |= {rename(name): file for name in names[i::count]}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sorted(folder.glob("model-*.safetensors"))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def assert_same(found: InfiniteVL, expected: InfiniteVL) -> None:
    left, right = dict(found.named_parameters()), dict(expected.named_parameters())
    assert left.keys() == right.keys()
    for name, parameter in right.items():
        assert torch.equal(left[name], parameter), name


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(folder)
    line = str(refused.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(policy=AttentionPolicy(sinks=0, window=None), position_horizon=90.5, frames_per_step=2, square_grid=True),
        small(decoder=replace(DECODER, tie_word_embeddings=False)),
        small(decoder=replace(DECODER, layer_types=("delta_net", "attention") * 4)),
    ],
    ids=["plain", "options", "untied", "layers"],
)
def test_what_is_saved_is_loaded(config: InfiniteVLConfig, tmp_path: Path) -> None:
    model = build(config)
    save_checkpoint(model, TOKENIZER, tmp_path, torch.float32)
    loaded, tokenizer = load_checkpoint(tmp_path)
    assert loaded.config == config
    assert_same(loaded, model)
    assert tokenizer.decode(tokenizer.encode("where?")) == "where?"


def test_a_fused_model_can_be_saved(tmp_path: Path) -> None:
    model = build(small())
    model.fuse()
    save_checkpoint(model, TOKENIZER, tmp_path, torch.float32)
    assert_same(load_checkpoint(tmp_path)[0], build(small()))


def test_large_weights_are_saved_in_shards(tmp_path: Path) -> None:
    model = build(small())
    sizes = [4 * parameter.numel() for parameter in model.parameters()]
    most = max(*sizes, sum(sizes) // 4)
    save_checkpoint(model, TOKENIZER, tmp_path, torch.float32, shard_bytes=most)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) >= 4
    assert [file.name for file in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= most for file in files)
    loaded, _ = load_checkpoint(tmp_path)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), loaded.parameters(), strict=True))
    for file in files:
        file.unlink()
    save_checkpoint(model, TOKENIZER, tmp_path, torch.float32)
    assert not (tmp_path / INDEX).exists()
    load_checkpoint(tmp_path)


def test_saving_makes_the_folder_and_keeps_the_decays_digits(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    save_checkpoint(build(small()), TOKENIZER, folder, torch.bfloat16)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.dtype == (torch.float32 if name.endswith(("A_log", "dt_bias")) else torch.bfloat16), name


def test_dtype_is_converted_but_for_the_decay(folder: Path) -> None:
    loaded, _ = load_checkpoint(folder, dtype=torch.bfloat16)
    expected = dict(build(small()).named_parameters())
    for name, parameter in loaded.named_parameters():
        kept = name.endswith(("A_log", "dt_bias"))
        assert parameter.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(parameter, expected[name].to(parameter.dtype)), name


def older(name: str) -> str:
    return name


def newer(name: str) -> str:
    return f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("layout", [older, newer])
@pytest.mark.parametrize("sharded", [False, True])
def test_both_prefix_layouts(folder: Path, layout: Callable[[str], str], sharded: bool) -> None:
    if sharded:
        shard(folder, layout)
    else:
        weights = load_file(folder / WEIGHTS)
        save_file({layout(name): tensor for name, tensor in weights.items()}, folder / WEIGHTS)
    assert_same(load_checkpoint(folder)[0], build(small()))


def test_a_tied_head_may_be_spelled_out(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert_same(load_checkpoint(folder)[0], build(small()))


def test_config_round_trip() -> None:
    for config in (PRESETS["nano"], PRESETS["4b"], small(position_horizon=None)):
        assert parse_config(json.loads(json.dumps(config.to_dict()))) == config


V1: dict[str, Any] = {
    "architectures": ["InfiniteVLQwen2_5_VLForConditionalGeneration"], "model_type": "infinitevl_qwen2_5_vl",
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "tie_word_embeddings": True,
    "max_position_embeddings": 128000, "use_sliding_window": True, "sliding_window": 8192, "max_window_layers": 36,
    "num_linear_heads": 16, "num_linear_key_value_heads": 16, "linear_head_dim": 128, "expand_v": 2, "conv_size": 4,
    "use_gate": True, "norm_eps": 1e-5, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "image_token_id": 151655, "video_token_id": 151656, "eos_token_id": 151645, "bos_token_id": 151643,
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "patch_size": 14,
        "spatial_patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 2048, "tokens_per_second": 2, "in_chans": 3,
    },
}  # fmt: skip


def test_v1_runs_with_the_attention_it_was_trained_with() -> None:
    assert parse_config(V1) == replace(PRESETS["4b"], policy=AttentionPolicy(sinks=0, window=8192))


def test_v2_names_sinks_and_window_and_may_nest_its_text() -> None:
    top = ("architectures", "model_type", "vision_config")
    nested = {key: V1[key] for key in top}
    nested["text_config"] = {key: value for key, value in V1.items() if key not in top}
    nested["text_config"] |= {"attention_sinks": 256, "sliding_window": 2048, "position_horizon": 600}
    nested["text_config"]["rope_parameters"] = {"rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    del nested["text_config"]["rope_scaling"], nested["text_config"]["rope_theta"]
    assert parse_config(nested) == replace(PRESETS["4b"], position_horizon=600)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": "2048"}, "hidden_size '2048' must be a whole number"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 must be a whole number of at least 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads 16 must be a multiple of num_key_value_heads 3"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings 1 must be true or false"),
        ({"rope_scaling": {"mrope_section": [16, 24]}}, "a key is missing or misstated"),
        ({"rope_scaling": {"mrope_section": [16, 24, 25]}}, "must sum to half of head_dim 128"),
        ({"layer_types": ["mamba"] * 36}, "layer_types names 'mamba'"),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers says 36"),
        ({"num_linear_key_value_heads": 4}, "num_linear_key_value_heads 4 differs from num_linear_heads 16"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers 1000000000000 must be at most 1000"),
        ({"vision_config": V1["vision_config"] | {"depth": 1_001}}, "vision depth 1001 must be at most 1000"),
        ({"use_gate": False}, "use_gate false is not supported"),
        ({"vision_config": None}, "vision_config is missing"),
        ({"position_horizon": 3}, "position_horizon 3 s is shorter than the attention window's span of 32 s"),
        ({"eos_token_id": [1, 2]}, "eos_token_id [1, 2] must be a whole number"),
    ],
)
def test_config_faults_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_config(V1 | change)


def test_not_a_folder(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file is a file: a checkpoint is the folder"):
        locate(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"Q4\.gguf is a GGUF file, which is not read: take the repository with"):
        locate(str(tmp_path / "Q4.gguf"))
    with pytest.raises(CheckpointError, match="is no folder here: name a checkpoint folder"):
        locate(str(tmp_path / "nowhere"))


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", r"is not JSON \(line 1: .*\): download it again"),
        (b"[]", "is not a JSON object"),
        (b"\xff", r"is not JSON \('utf-8' .*\): download it again"),
    ],
)
def test_unreadable_config(folder: Path, content: bytes, said: str) -> None:
    (folder / "config.json").write_bytes(content)
    assert re.search(said, refusal(folder))


def test_unknown_architecture(folder: Path) -> None:
    edit_config(folder, architectures=["LlamaForCausalLM"], model_type="llama")
    assert (
        "architecture 'LlamaForCausalLM' of model_type 'llama' is not one that is read: InfiniteVL and Qwen3.5"
        in refusal(folder)
    )


def test_heads_of_the_tower_part_its_width(folder: Path) -> None:
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit_config(folder, vision_config=vision | {"num_heads": 5})
    width = vision["hidden_size"]
    assert f"vision hidden_size {width} must be a multiple of 4 times its num_heads 5" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4 bits"),
    ],
)
def test_quantised_weights_are_refused_by_name(folder: Path, change: dict[str, Any], method: str) -> None:
    edit_config(folder, **change)
    assert f"are quantised ({method}), which is not read: take the repository without that suffix" in refusal(folder)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_known_by_their_numbers(folder: Path, kind: torch.dtype) -> None:
    """Where config.json says nothing of them; ones of the right shape would be loaded as if they were weights."""
    edit_weights(folder, lambda w: w.update({"model.norm.weight": w["model.norm.weight"].to(kind)}))
    said = refusal(folder)
    assert f"holds quantised weights, which are not read (model.norm.weight in {str(kind)[6:]}): take the " in said


def test_a_clone_without_the_large_files_is_named(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1746882752\n")
    assert f"{folder / WEIGHTS} is Git LFS's pointer to the weights, not the weights: run git lfs pull" in refusal(
        folder
    )


def test_a_tokenizer_of_more_tokens_than_rows(folder: Path) -> None:
    """Its last ids would be looked up beyond the end of the embeddings, at the first word that has one."""
    found = json.loads((folder / "tokenizer.json").read_text())
    last = DECODER.vocab_size
    found["added_tokens"].append({**found["added_tokens"][-1], "id": last, "content": "<|one more|>"})
    found["model"]["vocab"]["<|one more|>"] = last
    (folder / "tokenizer.json").write_text(json.dumps(found))
    assert f"ids up to {last}, the weights' vocabulary ends before {last}: they belong to different" in refusal(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing: take it from the repository that the weights are from" in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    said = refusal(folder)
    assert "has no *.safetensors, the only weights that are read: pytorch_model.bin is not read; take the" in said


def test_missing_tensors_are_named_and_counted(folder: Path) -> None:
    edit_weights(
        folder, lambda w: [w.pop(f"visual.blocks.1.attn.{x}") for x in ("qkv.weight", "qkv.bias", "proj.bias")]
    )
    assert refusal(folder).endswith(
        "3 missing (visual.blocks.1.attn.proj.bias, visual.blocks.1.attn.qkv.bias, visual.blocks.1.attn.qkv.weight)"
    )


def test_unexpected_tensors_are_named_and_counted(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({f"model.layers.{i}.extra": torch.zeros(1) for i in range(5)}))
    assert refusal(folder).endswith(
        "5 unexpected (model.layers.0.extra, model.layers.1.extra, model.layers.2.extra, and 2 more)"
    )


def test_wrong_shapes_are_named_and_counted(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"model.norm.weight": torch.zeros(47), "model.gone": torch.zeros(2)}))
    said = refusal(folder)
    assert "1 wrong-shaped (model.norm.weight (47,) instead of (48,))" in said
    assert "1 unexpected (model.gone)" in said


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_norms_that_are_no_numbers_are_named_with_their_file(value: float, folder: Path) -> None:
    norms = [name for name in load_file(folder / WEIGHTS) if name.endswith("norm.weight")]
    assert "model.norm.weight" in norms and "model.layers.0.input_layernorm.weight" in norms
    edit_weights(folder, lambda w: w["model.norm.weight"][7:8].fill_(value))
    shards = shard(folder)
    (file,) = (each.name for each in shards if "model.norm.weight" in load_file(each))
    assert refusal(folder) == f"{folder} holds NaN or infinite numbers (model.norm.weight in {file}): download it again"
    for each in shards:
        weights = load_file(each)
        save_file({name: torch.full_like(w, value) if name in norms else w for name, w in weights.items()}, each)
    assert f", and {len(norms) - 3} more): download it again" in refusal(folder)


@pytest.mark.parametrize("name", ["vision_start", "vision_end", "image", "video"])
def test_tokens_outside_of_the_vocabulary_are_named_with_the_file(name: str, folder: Path) -> None:
    rows = small().decoder.vocab_size
    edit_config(folder, **{f"{name}_token_id": rows})
    said = f"{folder / 'config.json'}: {name}_token_id {rows} is outside of the vocabulary of {rows}: take the config"
    assert refusal(folder).startswith(said)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_shard(folder: Path, kept: int) -> None:
    last = shard(folder)[-1]
    content = last.read_bytes()
    last.write_bytes(content[:kept])
    assert f"{last} is damaged or cut short" in refusal(folder)


def test_missing_shard(folder: Path) -> None:
    first, second, _ = shard(folder)
    second.unlink()
    assert f"lacks 1 of 3 shards: {second.name}; download them again" in refusal(folder)
    first.unlink()
    assert f"lacks 2 of 3 shards: {first.name}, {second.name};" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": 3}}'])
def test_damaged_index(folder: Path, content: str) -> None:
    shard(folder)
    (folder / INDEX).write_text(content)
    assert "is not a safetensors index with a weight_map" in refusal(folder)


def test_a_terminal_is_shown_how_far_loading_is(capfd: pytest.CaptureFixture[str]) -> None:
    code = "from model.checkpoint import load_checkpoint; from model.serving.runner import NANO; load_checkpoint(NANO)"
    watching, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    shown = ""
    with subprocess.Popen([sys.executable, "-c", code], stderr=terminal) as loading:
        os.close(terminal)
        with suppress(
            OSError
        ):  # Linux's end of a terminal; one that nobody reads holds its writer up after a few seconds
            while part := os.read(watching, 100_000):
                shown += part.decode()
    os.close(watching)
    assert loading.returncode == 0
    assert "loading weights" in shown and "tensor/s" in shown
    load_checkpoint(NANO)
    assert capfd.readouterr() == ("", ""), "which is no terminal"


MEASURE = """
import sys
from pathlib import Path
import torch
from model.checkpoint import load_checkpoint
from model.config import PRESETS
from model.families.infinitevl import InfiniteVL

def memory(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) / 1024

with torch.device("meta"):
    InfiniteVL(PRESETS["nano"])  # what the first model imports is not the question
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
model, _ = load_checkpoint(Path(sys.argv[1]))
size = sum(p.nbytes for p in model.parameters()) / 2**20
print(memory("VmHWM") - before, size)
"""


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path) -> None:
    """bf16 shards into a float32 model: at its peak the model, one shard's pages and what the libraries take."""
    decoder = replace(DECODER, hidden_size=512, intermediate_size=2560)
    config = small(decoder=decoder, vision=replace(small().vision, out_hidden_size=512))
    save_checkpoint(build(config), TOKENIZER, tmp_path, torch.bfloat16)
    shards = shard(tmp_path, count=8)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=100
    )
    peak, size = map(float, run.stdout.split())
    assert size > 120
    assert peak < size + max(path.stat().st_size for path in shards) / 2**20 + 30


def test_the_4b_has_the_published_tensors() -> None:
    table = (Path(__file__).parent / "infinitevl-4b-tensors.tsv").read_text().splitlines()[1:]
    expected = {name: shape for name, shape in (line.split("\t") for line in table)}
    with torch.device("meta"):
        model = InfiniteVL(PRESETS["4b"])
    found = {newer(name): "x".join(map(str, p.shape)) for name, p in model.named_parameters()}
    tied = expected.pop("lm_head.weight")
    assert tied == expected["model.language_model.embed_tokens.weight"]
    assert found == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def test_loading_leaves_torchs_compiler_alone() -> None:
    """It would take 75 MB for as long as the daemon runs, and two seconds."""
    program = (
        "import sys, torch; from model import load_runner; load_runner('nano', slots=1); "
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
