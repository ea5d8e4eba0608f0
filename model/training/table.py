"""The paper's Table 2 in small: `python -m model.training.table runs/online runs/offline runs/base --json table.json`.

Every stage is asked the same questions about the same streams, of what is there now and of what has left every window; beside it
who saw the last four frames only. Intervals are of 95 %, by drawing the streams anew (a stream's questions are wrong together), and
differences from the first folder are of the same streams. Then what the stages had learned by which minute, from their curves.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from model.evaluation.distributed import limit_autotuning
from model.evaluation.report import OPEN, grid
from model.evaluation.score import GLIMPSE, GONE, MEMORY, NOW, Exam, Marks, Paper, ask_each, compose, watch
from model.families.infinitevl import InfiniteVL
from model.tokenizer import Tokenizer
from model.training.dataset import TOKENIZER
from model.training.saving import Saved
from model.training.stages import StageError
from model.training.start import holds_stage
from model.world.questions import Question
from model.world.render import Assets, Painter
from model.world.scene import Gallery, Profile, Scene

SEED = 2027
STREAMS = {32: 384, 128: 256, 512: 96, 2048: 32}
"""How many streams of so many frames are asked about."""
QUESTIONS = {32: 6, 128: 8, 512: 12, 2048: 16}
"""How many questions of each kind a stream is asked."""
KINDS = ("now", "memory")
DRAWN = 2000
"""Times the streams are drawn anew for an interval."""
Counts = list[list[int]]
"""By stream: right answers and questions."""


@dataclass
class Sitting:
    """Streams of one length, drawn: their scenes and, by kind, each one's questions."""

    frames: int
    scenes: list[Scene]
    asked: dict[str, list[list[Question]]]


class Sittings(Dataset[Sitting]):
    """Groups of streams `(frames, first, last)`, each drawn and asked about by chances of its own; for a DataLoader's workers."""

    def __init__(self, gallery: Gallery, tokenizer: Path) -> None:
        self.gallery, self.vocabulary = gallery, tokenizer
        self.tokenizer: Tokenizer | None = None

    def __getitem__(self, key: tuple[int, int, int]) -> Sitting:
        from model.config import nano

        self.tokenizer = self.tokenizer or Tokenizer.load(self.vocabulary, nano())
        frames, first, last = key
        steps = frames // 2
        profile = Profile(things=(1, 8))
        # Where a stream is no longer than two windows, what is gone is what has just left one.
        gone = min(GONE, steps // 2 + 1)
        now = Paper("now", steps, last - first, QUESTIONS[frames], NOW, profile)
        memory = Paper("memory", steps, last - first, QUESTIONS[frames], MEMORY, profile, gone=gone)
        chances = [np.random.default_rng((SEED, steps, i)) for i in range(first, last)]
        scenes, asked = compose(now, chances, self.gallery, self.tokenizer)
        old = ask_each(memory, chances, scenes, steps - 1, self.tokenizer)
        answered = [[q for q in each if q.skill in OPEN and q.kind in ("", "short", "long")] for each in old]
        return Sitting(frames, scenes, {"now": asked, "memory": answered})


def keep(sitting: Sitting) -> Sitting:
    return sitting


@torch.no_grad()
def sit(
    network: InfiniteVL, painter: Painter, tokenizer: Tokenizer, sitting: Sitting, patches: Tensor
) -> dict[str, Counts]:
    """By kind, and by kind of who saw the last four frames only ("now, glimpse"), each stream's right answers and questions."""
    exam = Exam(network, painter, tokenizer, Marks(), tqdm(disable=True))
    seconds = torch.from_numpy(np.stack([scene.seconds for scene in sitting.scenes])).to(exam.device)
    part = 128 if exam.device.type == "cuda" else 16
    x = patches.to(network.model.embed_tokens.weight.dtype)
    whole = watch(network, x, seconds, None, part)
    glimpse = watch(network, x[:, -GLIMPSE:], seconds[:, -GLIMPSE:], None)
    found = {}
    for kind in KINDS:
        asked = sitting.asked[kind]
        for name, memory in ((kind, whole), (f"{kind}, glimpse", glimpse)):
            right = exam.right(memory, seconds[:, -1], asked) if any(asked) else [[] for _ in asked]
            found[name] = [[sum(each), len(each)] for each in right]
    return found


Found = dict[str, dict[int, dict[str, Counts]]]
"""By folder, frames and kind."""


def ask(networks: dict[str, InfiniteVL], device: torch.device, streams: dict[int, int], workers: int) -> Found:
    """Asks every network the same questions; scenes are drawn by `workers` processes, painted once."""
    assets = Assets.load()
    painter = Painter(assets, device)
    room = 1024 if device.type == "cuda" else 64
    keys = []
    for frames, count in streams.items():
        group = max(1, 2 * room // frames)
        keys += [(frames, first, min(first + group, count)) for first in range(0, count, group)]
    loader: DataLoader[Sitting] = DataLoader(
        Sittings(assets.gallery, TOKENIZER), batch_size=None, sampler=keys, num_workers=workers, collate_fn=keep  # type: ignore[arg-type]
    )  # fmt: skip
    found: Found = {name: {frames: defaultdict(list) for frames in streams} for name in networks}
    tokenizer = Tokenizer.load(TOKENIZER, next(iter(networks.values())).config)
    for sitting in tqdm(loader, total=len(keys), unit="group"):
        exam = Exam(next(iter(networks.values())), painter, tokenizer, Marks(), tqdm(disable=True))
        patches = exam.patches(sitting.scenes, SEED)
        for name, network in networks.items():
            for kind, counts in sit(network, painter, tokenizer, sitting, patches).items():
                found[name][sitting.frames][kind] += counts
    return found


def remembered(path: Path) -> Found:
    """What an earlier table wrote with --json. Raises StageError."""
    try:
        found = json.loads(path.read_text())
        if not found:
            raise ValueError("it asked nobody")
        return {
            str(name): {
                int(frames): {
                    str(kind): [[int(right), int(n)] for right, n in counts] for kind, counts in kinds.items()
                }
                for frames, kinds in lengths.items()
            }
            for name, lengths in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path} is not what a table wrote with --json ({error}): name a folder or such a file"
        ) from None


def together(parts: Sequence[Found]) -> Found:
    """Tables of the same questions as one. Raises StageError where they are of other questions, or name a folder twice."""
    whole: Found = {}
    for part in parts:
        for name, lengths in part.items():
            if name in whole:
                raise StageError(f"{name} is there twice: the table calls folders by their names, so name each once")
            whole[name] = lengths
    asked = {
        name: [[n for _, n in counts] for kinds in x.values() for counts in kinds.values()] for name, x in whole.items()
    }
    first = next(iter(whole))
    for name in whole:
        if list(whole[name]) != list(whole[first]) or asked[name] != asked[first]:
            raise StageError(
                f"{name} was asked other questions than {first}: ask both with the same --frames and --streams"
            )
    return whole


def interval(counts: Counts, less: Counts | None = None) -> tuple[float, float, float]:
    """Share of right answers (less another's of the same questions) with the ends of its interval of 95 %, the streams drawn anew."""
    whole = np.array(counts, float).reshape(-1, 2)
    if not whole[:, 1].sum():
        return (float("nan"),) * 3
    gained = whole[:, 0] - (np.array(less, float).reshape(-1, 2)[:, 0] if less is not None else 0.0)
    drawn = np.random.default_rng(0).integers(len(whole), size=(DRAWN, len(whole)))
    asked = whole[:, 1][drawn].sum(1)
    shares = gained[drawn].sum(1)[asked > 0] / asked[asked > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(gained.sum() / whole[:, 1].sum()), float(low), float(high)


def told(share: tuple[float, float, float], sign: bool = False) -> str:
    value, low, high = share
    if value != value:
        return "–"
    return f"{value:+.2f} ({low:+.2f} … {high:+.2f})" if sign else f"{value:.2f} ({low:.2f} … {high:.2f})"


def lines(found: Found) -> Iterator[str]:
    """The tables as Markdown."""
    names = list(found)
    lengths = list(found[names[0]])
    columns = [(frames, kind) for frames in lengths for kind in KINDS]
    head = ["", *(f"{frames} frames, {kind}" for frames, kind in columns)]
    asked = [str(sum(n for _, n in found[names[0]][frames][kind])) for frames, kind in columns]
    rows = [[name, *(told(interval(found[name][f][k])) for f, k in columns)] for name in names]
    rows += [
        [f"{name}, last four frames", *(told(interval(found[name][f][f"{k}, glimpse"])) for f, k in columns)]
        for name in names
    ]
    yield from grid(head, [*rows, ["questions", *asked]])
    if len(names) > 1:
        yield from ("", f"Less {names[0]}, of the same questions:")
        yield from grid(
            head,
            [
                [n, *(told(interval(found[n][f][k], found[names[0]][f][k]), True) for f, k in columns)]
                for n in names[1:]
            ],
        )


def way(folder: Path) -> list[Saved]:
    """The stages that led to a folder's, the first first, itself the last; those whose folders are gone are left out."""
    saved = Saved(folder)
    origin = saved.standing.origin
    before = way(Path(origin)) if origin and holds_stage(origin) else []
    return [*before, saved]


def by_minute(folders: Sequence[Path]) -> Iterator[str]:
    """What each folder's way had learned by which minute of it, its teacher's minutes not counted; as Markdown."""
    rows = []
    for folder in folders:
        spent = 0.0
        for saved in way(folder):
            standing = saved.standing
            if standing.stage == "teacher":
                rows.append([folder.name, "teacher", f"{standing.minutes:.1f} before", "", ""])
                continue
            for row in saved.curve():
                probe = row.get("probe")
                if probe:
                    shares = [f"{right / asked:.2f} ({asked})" if asked else "–" for right, asked in probe.values()]
                    rows.append(
                        [folder.name, f"{standing.stage}, {row['part']}", f"{spent + row['minutes']:.2f}", *shares]
                    )
            spent += standing.minutes
    yield from grid(["", "stage", "minutes", "now, 32 frames", "memory, 128 frames"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        help="folders that stages wrote, or the JSON of an earlier table of others; all are compared with the first",
    )
    parser.add_argument(
        "--frames", type=int, nargs="+", choices=STREAMS, default=list(STREAMS), help="lengths of streams"
    )
    parser.add_argument(
        "--streams", type=int, help="streams of each length, at most (default: hundreds of short ones, 32 long)"
    )
    parser.add_argument(
        "--minutes", type=Path, nargs="*", default=[], metavar="FOLDER", help="tell these folders' ways by minute"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="what is computed in (default: bfloat16 on CUDA)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each stream's counts here as well")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda":
        limit_autotuning()
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    streams = {frames: min(given.streams or STREAMS[frames], STREAMS[frames]) for frames in given.frames}
    try:
        earlier = {path: remembered(path) for path in given.folders if path.suffix == ".json"}
        fresh = [path for path in given.folders if path not in earlier]
        if len({path.name for path in fresh}) < len(fresh):
            parser.error("two folders have the same name: the table calls them by it")
        networks = {path.name: Saved(path).network(device, dtype) for path in fresh}
        told_by_minute = list(by_minute(given.minutes)) if given.minutes else []
        asked = ask(networks, device, streams, given.workers) if networks else {}
        found = together([earlier.get(path) or {path.name: asked[path.name]} for path in given.folders])
    except StageError as error:
        parser.exit(1, f"{error}\n")
    if given.json:
        given.json.write_text(json.dumps(found))
    print("\n".join(lines(found)), flush=True)
    print("\n".join(["", *told_by_minute]), flush=True)


if __name__ == "__main__":
    main()
