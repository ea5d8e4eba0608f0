"""What a stage saves and how it is found again: files that fit through a narrow door, and one that says which belong together.

A save is whole or is not there: files of a new name are written first, then `state.json` is replaced in one move, then the old
files are deleted. Weights are float16; the optimizer's moments are float8 with a scale each, or bfloat16.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import WHOLE, listed, parted
from model.config import ConfigError, parse_config
from model.families.infinitevl import InfiniteVL
from model.training.stages import STAGES, StageError, Standing, policy

FILE_BYTES = 15 * 10**6
"""A file's tensors are at most so many bytes, or one tensor."""
STATE, CURVE = "state.json", "curve.jsonl"


def packed(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in parts of at most `FILE_BYTES`, in order."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    return [
        {name: tensors[name].detach().cpu().contiguous() for name in part} for part in parted(sizes, FILE_BYTES) if part
    ]


def write_state(folder: Path, standing: Standing) -> None:
    """Replaces `state.json` in one move."""
    written = folder / (STATE + ".new")
    written.write_text(json.dumps(asdict(standing)))
    written.replace(folder / STATE)


def save(folder: Path, kinds: dict[str, dict[str, Tensor]], standing: Standing) -> None:
    """Writes the tensors of each kind and then what says that they are there; a kind that isn't given is left as it was saved."""
    folder.mkdir(parents=True, exist_ok=True)
    before = standing.files
    standing.files = {kind: names for kind, names in before.items() if kind not in kinds}
    for kind, tensors in kinds.items():
        parts = packed(tensors)
        names = [f"{kind}-{i}.{standing.step}.safetensors" for i in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            save_file(part, str(folder / name))
        standing.files[kind] = names
    write_state(folder, standing)
    tidy(folder, standing)


def tidy(folder: Path, standing: Standing) -> None:
    """Deletes the files of tensors that `standing` doesn't name: those of the save before, and what a run that was killed left."""
    kept = {name for names in standing.files.values() for name in names}
    for path in folder.glob("*.safetensors"):
        if path.name not in kept:
            path.unlink(missing_ok=True)  # of several processes another may have been first


class Saved:
    """A stage's folder, or the checkpoint that was exported of one (whose weights are its running mean)."""

    def __init__(self, folder: Path) -> None:
        """Raises StageError where nothing was saved, or what tells of it can't be read."""
        self.folder = folder
        self.exported = (folder / WHOLE).is_file()
        self.record = folder / "training" if self.exported else folder
        path = self.record / STATE
        try:
            found = json.loads(path.read_text())
            self.standing = Standing(**found)
            self.config = parse_config(
                json.loads((folder / "config.json").read_text()) if self.exported else dict(self.standing.config)
            )
        except FileNotFoundError:
            raise StageError(
                f"{folder} holds no saved stage ({path.name} is missing): name a folder that one wrote"
            ) from None
        except (ValueError, TypeError, OSError, ConfigError) as error:
            raise StageError(f"{path} is not what a stage saves ({error}): name a folder that one wrote") from None
        if self.standing.stage not in STAGES:
            raise StageError(f"{path} tells of the stage {self.standing.stage!r}: there are {', '.join(STAGES)}")
        if not self.exported:
            self.config = self.config.with_policy(policy(self.standing.policy, self.config))

    def tensors(self, kind: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors of a kind by name; none where it was not saved. Raises StageError for a file that is damaged or gone.

        Only what is asked for need be there: the next stage needs "mean" and "frozen" alone.
        """
        of_export = [WHOLE] if kind in ("weights", "mean") else []
        names = of_export if self.exported else self.standing.files.get(kind, [])
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise StageError(f"{self.folder} lacks {listed(missing)}, which {STATE} names: copy the whole folder")
        found: dict[str, Tensor] = {}
        for name in names:
            try:
                found |= load_file(str(self.folder / name), device=str(device))
            except (SafetensorError, OSError) as error:
                raise StageError(f"{self.folder / name} is damaged or cut short ({error}): save again") from None
        return found

    def weights(self, kind: str = "mean", device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """All weights, those that were not trained among them; `kind` is "weights" or "mean", the running mean of them."""
        return self.tensors("frozen", device) | self.tensors(kind, device)

    def network(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> InfiniteVL:
        """The model as it would be served: the running mean of the weights, under the stage's attention policy."""
        model = InfiniteVL(self.config).to(device)
        put(model, self.weights("mean", device), str(self.folder))
        for name, parameter in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias")):
                parameter.data = parameter.data.to(dtype)
        return model.eval()

    def curve(self) -> list[dict[str, Any]]:
        """The rows of the curve up to what was saved; half a last line, of a run that was killed, is passed over."""
        rows: list[dict[str, Any]] = []
        path = self.record / CURVE
        for line in path.read_text().splitlines() if path.is_file() else []:
            with suppress(ValueError):
                rows.append(json.loads(line))
        return [row for row in rows if row["step"] <= self.standing.step]


def put(model: InfiniteVL, weights: dict[str, Tensor], where: str) -> None:
    """Gives `model` its weights. Raises StageError, naming what `where` lacks or has in another shape."""
    wanted = dict(model.named_parameters())
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise StageError(f"{where} lacks {len(missing)} weights ({listed(missing)}): its sizes are not this model's")
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(p.shape)}"
        for name, p in wanted.items()
        if weights[name].shape != p.shape
    ]
    if misshapen:
        raise StageError(f"{where} does not fit: {listed(misshapen)}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])


def narrowed(moment: Tensor) -> tuple[Tensor, Tensor]:
    """A moment as float8 and its scale (float32): a sixteenth of its precision is enough for what twenty steps forget."""
    scale = moment.abs().amax().float().clamp(min=1e-30) / torch.finfo(torch.float8_e4m3fn).max
    return (moment / scale).to(torch.float8_e4m3fn), scale


def widened(moment: Tensor, scale: Tensor) -> Tensor:
    """`narrowed`, back as float32."""
    return moment.float() * scale
