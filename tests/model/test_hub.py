"""Repositories by name: what is downloaded of them, and what is refused before it is."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import save_checkpoint

from .hub import hub
from .small import build, small

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder of a small model."""
    save_checkpoint(build(small()), Path("model/nano/tokenizer.json"), tmp_path, torch.float32)
    return tmp_path


FETCH = """
import sys
from model.checkpoint import CheckpointError, load_checkpoint, locate
for name in sys.argv[1:]:
    try:
        folder = locate(name)
        load_checkpoint(folder)
        print(*sorted(path.name for path in folder.iterdir()))
    except CheckpointError as error:
        print(error)
"""


def fetch(endpoint: str, cache: Path, *names: str) -> tuple[list[str], str]:
    """Downloads and loads repositories in a process of its own; what it printed of each, and what it showed meanwhile."""
    found = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FETCH, *names], capture_output=True, text=True, check=True, timeout=200, env=found
    )
    return run.stdout.splitlines(), run.stderr


def test_a_repository_is_downloaded_by_name(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With a progress bar, and without the files that are not read."""
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    cache, other = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    (other / WEIGHTS).rename(other / "small-Q4.gguf")
    with hub({"someone/small": folder, "someone/small-GGUF": other}) as endpoint:
        said, shown = fetch(endpoint, cache, "someone/small", "someone/other", "someone/small-GGUF")
    assert said[0] == "config.json model.safetensors tokenizer.json" and "100%" in shown
    assert said[1].startswith("someone/other is neither a folder here nor a repository that the hub shows you")
    assert said[2].startswith("someone/small-GGUF has no *.safetensors, the only weights that are read (GGUF are not)")
    (said, *_), _ = fetch(endpoint, cache, "someone/new")
    assert re.fullmatch(r"someone/new is no folder here and can't be downloaded as a repository: .*", said)


def test_weights_that_are_not_read_are_not_downloaded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A mixture of experts of 70 GB is refused by its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen3_5_moe", "architectures": []}))
    cache = tmp_path_factory.mktemp("cache")
    with hub({"someone/experts": folder}) as endpoint:
        (said, *_), _ = fetch(endpoint, cache, "someone/experts")
    assert said.startswith("someone/experts's config.json: model_type 'qwen3_5_moe' is a mixture of experts")
    assert not list(cache.rglob("*.safetensors"))
