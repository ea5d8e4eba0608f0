"""Checkpoints: Hugging Face folders (sharded safetensors, config.json, tokenizer.json) in and out, with little memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from model.config import ConfigError, DecoderConfig, InfiniteVLConfig
from model.families.family import FAMILIES, UNQUANTISED, parse
from model.families.infinitevl import InfiniteVL
from model.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
SHARD = "model-{:05}-of-{:05}.safetensors"
SHARD_BYTES = 4 * 10**9
KEPT_FLOAT32 = ("A_log", "dt_bias")
"""Parameters whose precision the decay needs, whatever the model's dtype."""
NORMS = "norm.weight"
"""How the decoder's norms end, which some families keep in float32 too."""
UNREAD = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5", ".onnx")
"""Weights in forms that are not read: loading a pickle runs whatever code it names, and GGUF has other numbers."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What weights are stored in that are not quantised."""
NAMED = 3
"""How many offending tensors an error names; the rest it counts."""


class CheckpointError(ValueError):
    """A checkpoint that can't be loaded; the message is one line that names what is wrong and the mend."""


def locate(name: str) -> Path:
    """A local folder as it is; "owner/name" is downloaded from the Hugging Face hub, with a progress bar. Raises CheckpointError."""
    folder = Path(name)
    with suppress(RuntimeError):  # "~name" of nobody known here is a name like any other
        folder = folder.expanduser()
    if folder.is_dir():
        return folder
    if folder.suffix == ".gguf":
        raise CheckpointError(f"{name} is a GGUF file, which is not read: take the repository with *.safetensors")
    if folder.exists():
        raise CheckpointError(f"{name} is a file: a checkpoint is the folder that holds config.json and *.safetensors")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"{name} is no folder here: name a checkpoint folder, a preset or a repository as owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        found = Path(snapshot_download(name, allow_patterns=["config.json"]))
        if (found / "config.json").is_file():
            read_config(found)  # before the weights, which may be a hundred gigabytes of what is not read
        found = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except CheckpointError as error:
        raise CheckpointError(f"{name}'s {str(error).removeprefix(f'{found}/')}") from None
    except GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{name} is neither a folder here nor a repository that the hub shows you: check the name, or log in with `hf auth login`"
        ) from None
    except Exception as error:  # the hub's client raises a dozen kinds; each is the user's or the network's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{name} is no folder here and can't be downloaded as a repository: {reason}") from None
    if not any(found.glob("*.safetensors")):
        raise CheckpointError(
            f"{name} has no *.safetensors, the only weights that are read (GGUF are not): take the repository that it was made from"
        )
    return found


def load_checkpoint(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **choices: Any
) -> tuple[InfiniteVL, Tokenizer]:
    """Loads a checkpoint folder, tensor by tensor straight to `device` and `dtype`.

    `choices` replace fields of its InfiniteVLConfig (the attention policy, say). A terminal is shown how far it is. Raises
    CheckpointError.
    """
    config = read_config(folder)
    try:
        config = replace(config, **choices)
        tokenizer = Tokenizer.load(folder / "tokenizer.json", config)
        config = tokenizer.fitted(config)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    with torch.device("meta"), Unfilled():
        model = InfiniteVL(config)
    fill(model, folder, torch.device(device), dtype)
    return model, tokenizer


class Unfilled(TorchFunctionMode):
    """Leaves first numbers out: on the meta device they mean nothing, and asking for them loads torch's compiler, 80 MB of it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "log_"):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def read_config(folder: Path) -> InfiniteVLConfig:
    """The folder's config.json. Raises CheckpointError."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: name the one that holds config.json and *.safetensors")
    if not path.is_file() and any(folder.glob("*.gguf")):
        raise CheckpointError(f"{folder} holds GGUF files, which are not read: take the repository with *.safetensors")
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: is it a Hugging Face checkpoint folder?")
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is not a JSON object: is it a model's config.json?")
        return parse(found)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON (line {error.lineno}: {error.msg}): download it again") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not JSON ({error}): download it again") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deep for a config.json: download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def shards(folder: Path) -> list[Path]:
    """The folder's safetensors files. Raises CheckpointError where there are none or one of the index is missing."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in names if not (folder / name).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{index} is not a safetensors index with a weight_map") from None
        if missing:
            raise CheckpointError(
                f"{folder} lacks {len(missing)} of {len(names)} shards: {listed(missing)}; download them again"
            )
        return [folder / name for name in names]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in UNREAD)
        what = f": {listed(others)} {'is' if len(others) == 1 else 'are'} not read" if others else ""
        raise CheckpointError(
            f"{folder} has no *.safetensors, the only weights that are read{what}; take the repository that has them, or save them so"
            " with transformers' save_pretrained"
        )
    return found


def tensors(paths: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its name in the checkpoint. Raises CheckpointError for a damaged file."""
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            if pointer(path):
                raise CheckpointError(
                    f"{path} is Git LFS's pointer to the weights, not the weights: run git lfs pull in its folder"
                ) from None
            raise CheckpointError(f"{path} is damaged or cut short ({error}): download it again") from None


def pointer(path: Path) -> bool:
    """Whether a file is what a clone without Git LFS has in a large one's place."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")
    return False


def fill(model: InfiniteVL, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Gives a model on the meta device its weights. Raises CheckpointError, naming tensors that are missing or wrong."""
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tied = model.config.decoder.tie_word_embeddings
    found: set[str] = set()
    unexpected: list[str] = []
    misshapen: list[str] = []
    quantised: list[str] = []
    infinite: list[str] = []
    bar = tqdm(total=len(expected), desc="loading weights", unit="tensor", leave=False, disable=None)
    config = model.config.decoder
    convert = FAMILIES[model.config.family].convert
    for path, theirs, stored in ((file, *each) for file in shards(folder) for each in tensors([file])):
        bar.update()
        if stored.dtype not in FLOATS:
            quantised.append(f"{theirs} in {str(stored.dtype).removeprefix('torch.')}")
            continue
        try:
            ours = list(convert(theirs, stored, config))
        except ValueError as error:
            misshapen.append(f"{theirs} {tuple(stored.shape)}: {error}")
            continue
        # Of norms and biases alone: to look through all weights takes as long as to read them.
        if ours and stored.dim() < 2 and not stored.isfinite().all():
            infinite.append(f"{theirs} in {path.name}")
        for name, tensor in ours:
            if name not in expected:
                if not (tied and name == "lm_head.weight"):
                    unexpected.append(name)
                continue
            found.add(name)
            if tuple(tensor.shape) != expected[name]:
                misshapen.append(f"{name} {tuple(tensor.shape)} instead of {expected[name]}")
                continue
            place(model, name, tensor.to(device, kept_dtype(config, name, dtype), copy=True))
    bar.close()
    if quantised:
        raise CheckpointError(
            f"{folder} holds quantised weights, which are not read ({listed(quantised)}): {UNQUANTISED}"
        )
    if infinite:
        raise CheckpointError(f"{folder} holds NaN or infinite numbers ({listed(infinite)}): download it again")
    missing = sorted(set(expected) - found)
    faults = [("missing", missing), ("unexpected", unexpected), ("wrong-shaped", misshapen)]
    said = [f"{len(names)} {what} ({listed(names)})" for what, names in faults if names]
    if said:
        raise CheckpointError(
            f"{folder}'s tensors are not those that its config.json describes, take both from one repository: {'; '.join(said)}"
        )


def kept_dtype(config: DecoderConfig, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a parameter has in a model of `dtype`."""
    norm = config.float32_norms and name.endswith(NORMS) and not name.startswith("visual.")
    return torch.float32 if norm or name.endswith(KEPT_FLOAT32) else dtype


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts `tensor` in the place of the parameter `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def listed(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def parted(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in order, in parts of at most `most` bytes, or of one larger tensor; `sizes` says how many bytes each has."""
    parts: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if size > room and parts[-1]:
            parts.append([])
            room = most
        parts[-1].append(name)
        room -= size
    return parts


def save_checkpoint(
    model: InfiniteVL, tokenizer: Path, folder: Path, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a folder that `load_checkpoint` reads: weights in `dtype`, config.json and a copy of `tokenizer` (a tokenizer.json).

    Weights of more than `shard_bytes` go into several files of at most so many bytes (or of one larger tensor) with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {name: kept_dtype(model.config.decoder, name, dtype) for name, _ in model.named_parameters()}
    sizes = {name: parameter.numel() * kinds[name].itemsize for name, parameter in model.named_parameters()}
    parts = parted(sizes, shard_bytes)
    files = [WHOLE] if len(parts) == 1 else [SHARD.format(i + 1, len(parts)) for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        weights = {
            name: model.get_parameter(name)
            .detach()
            .to("cpu", kinds[name], copy=True, memory_format=torch.contiguous_format)
            for name in part
        }
        save_file(weights, folder / file, metadata={"format": "pt"})
    (folder / INDEX).unlink(missing_ok=True)
    if len(files) > 1:
        shard_of = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
    if tokenizer.resolve() != (folder / "tokenizer.json").resolve():
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
