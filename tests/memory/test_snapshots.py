"""A snapshot's file is there whole or not at all, and the state that it holds is the state that went on, to the bit."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model import Runner, load_runner
from model.state import Snapshot
from streamer.memory.folder import Folder
from streamer.memory.snapshot import DamagedError, Taken, load
from streamer.memory.snapshots import Snapshots
from tests.streamer.fed import picture
from tests.tiny import TINY


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load_runner(TINY["name"], slots=3, random_weights=True)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "state")
    yield folder
    folder.close()


def see(runner: Runner, slot: int, *steps: int) -> None:
    for step in steps:
        shown = [picture(10 * step + n) for n in range(runner.frames_per_step)]
        assert runner.see([slot], [shown], [step / 2]) == [True]


def taken(wall: float = 1_000.0, **facts: Any) -> Taken:
    known = dict(
        stream="door", source="push://door", wall=wall, time=7.5, position=7.5, sequence=15, generation=1, resumes=0
    )
    return Taken(**{**known, "model": "tiny", "fingerprint": "f" * 32, "version": "1", **facts})


def same(one: Snapshot, other: Snapshot) -> bool:
    return one.keys() == other.keys() and all(
        part.dtype == other[name].dtype and torch.equal(part, other[name]) for name, part in one.items()
    )


def test_a_restored_stream_is_the_stream_that_went_on(runner: Runner, folder: Folder) -> None:
    runner.open(0, 48, 64)
    see(runner, 0, *range(4))
    fetch = runner.copy(0)
    before = runner.snapshot(0)
    see(runner, 0, 4)  # the copy is of the moment at which it was begun
    kept = Snapshots(folder, 10**9).write(taken(), fetch(), 1_000.0)
    facts, state = load(kept.path)
    assert facts == taken() and same(state, before)
    assert kept.size == kept.path.stat().st_size and not kept.path.stat().st_mode & 0o077
    runner.restore(1, runner.stage(state))
    assert same(runner.snapshot(1), before)
    see(runner, 1, 4)
    assert same(runner.snapshot(1), runner.snapshot(0))
    tokens = runner.tokenizer.encode_question("What is there?")
    assert torch.equal(runner.read([0], [tokens])[1], runner.read([1], [tokens])[1])


def test_types_of_every_width_come_back(folder: Folder) -> None:
    kinds = (torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.float64)
    state = {str(kind): (torch.arange(7) % 2).to(kind) for kind in kinds} | {"one": torch.tensor(3)}
    kept = Snapshots(folder, 10**9).write(taken(), state, 0.0)
    assert same(load(kept.path)[1], state)


def test_writes_torn_anywhere_are_noticed_and_the_one_before_is_taken(folder: Folder) -> None:
    snapshots, chance = Snapshots(folder, 10**9), random.Random(7)
    whole = snapshots.write(taken(1_000.0), {"x": torch.arange(1_000)}, 1_000.0)
    for n in range(60):
        torn = snapshots.write(taken(1_001.0 + n), {"x": torch.arange(1_000) + n}, 1_000.0)
        data = bytearray(torn.path.read_bytes())
        at = chance.randrange(len(data))
        if n % 3 == 0:
            del data[at:]
        elif n % 3 == 1:
            data[at] ^= 1 << chance.randrange(8)
        else:
            data[at:] = bytes(len(data) - at)  # a block that was never written
            if data == bytearray(torn.path.read_bytes()):
                continue
        torn.path.write_bytes(data)
        with pytest.raises(DamagedError):
            load(torn.path)
        assert snapshots.load(snapshots.of("door")[-1]) is None and snapshots.of("door")[-1] == whole
    found = snapshots.load(whole)
    assert found is not None and found[0].wall == 1_000.0


def test_a_snapshot_that_the_system_does_not_let_be_read_now_is_kept(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, or a disk that is away for a moment, are no damage."""
    snapshots = Snapshots(folder, 10**9)
    kept = [snapshots.write(taken(1_000.0 + n), {"x": torch.ones(9)}, 1_000.0) for n in range(2)]
    for number in (errno.EMFILE, errno.EIO, errno.EACCES):
        with monkeypatch.context() as away:
            away.setattr(Path, "read_bytes", lambda path, number=number: raising(number))
            assert [snapshots.load(each) for each in kept] == [None, None]
        assert snapshots.of("door") == kept and snapshots.load(kept[1]) is not None
    kept[1].path.unlink()
    assert snapshots.load(kept[1]) is None and snapshots.of("door") == kept[:1] and snapshots.damaged == 7


def raising(number: int) -> bytes:
    raise OSError(number, os.strerror(number))


def test_an_fsync_or_a_rename_that_fails_leaves_nothing_behind(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = Snapshots(folder, 10**9)
    first = snapshots.write(taken(1_000.0), {"x": torch.ones(9)}, 1_000.0)
    real, calls = os.fsync, iter(range(100))

    def failing(after: int) -> None:
        count = iter(range(100))

        def fsync(descriptor: int) -> None:
            if next(count) == after:
                raise OSError(errno.EIO, "Input/output error")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    for after in (0, 1):  # of the file, of its folder
        failing(after)
        with pytest.raises(OSError):
            snapshots.write(taken(2_000.0), {"x": torch.zeros(9)}, 2_000.0)
        assert list(first.path.parent.iterdir()) == [first.path] and snapshots.of("door") == [first]
    monkeypatch.undo()
    assert next(calls) == 0
    assert snapshots.write(taken(3_000.0), {"x": torch.zeros(9)}, 3_000.0).number == 2


def test_what_died_half_written_is_removed_and_the_rest_is_found(folder: Folder) -> None:
    snapshots = Snapshots(folder, 10**9)
    kept = [snapshots.write(taken(1_000.0 + n), {"x": torch.ones(n + 1)}, 1_000.0) for n in range(3)]
    partial = kept[0].path.parent / "0000000009-1.partial"
    partial.write_bytes(b"half")
    (kept[0].path.parent / "note.txt").write_text("a user's own")
    snapshots.forget("door", 1_002.0)
    Snapshots(folder, 10**9).write(taken(1_002.0), {"x": torch.ones(3)}, 1_000.0)
    snapshots.begin_anew()
    assert snapshots.of("door") == kept, "a disk that was away is back, with what is on it"
    partial.write_bytes(b"half")
    again = Snapshots(folder, 10**9)
    assert again.of("door") == kept and not partial.exists() and again.size == sum(each.size for each in kept)
    assert again.forget("door", 1_001.0) == 2 and [each.wall for each in again.of("door")] == [1_000.0]
    assert Snapshots(folder, 10**9).of("door") == kept[:1]


def test_all_streams_together_stay_within_the_budget(folder: Folder) -> None:
    size = Snapshots(folder, 10**9).write(taken(), {"x": torch.ones(1_000)}, 0.0).size
    snapshots = Snapshots(folder, 10 * size)
    for n in range(40):
        for stream in ("a", "b") if n < 20 else ("a",):
            now = 5.0 * n
            snapshots.write(taken(now, stream=stream), {"x": torch.ones(1_000)}, 0.0)
            assert snapshots.size <= 10 * size + 2 * size
    on_disk = sum(each.stat().st_size for each in folder.path.rglob("*.snapshot"))
    assert on_disk == snapshots.size <= 10 * size
    assert len(snapshots.of("a")) >= 4 and len(snapshots.of("b")) >= 4, "who asks for more takes it from nobody"


def test_the_fingerprint_tells_weights_and_policies_apart() -> None:
    from model import AttentionPolicy

    def mark(**options: Any) -> str:
        return load_runner(TINY["name"], slots=1, random_weights=True, **options).fingerprint

    assert mark() == mark()
    assert len({mark(), mark(policy=AttentionPolicy(4, 64)), mark(position_horizon=9.0), mark(dtype="bfloat16")}) == 4
    other = load_runner(TINY["name"], slots=1, random_weights=True)
    with torch.inference_mode():
        other.model.model.embed_tokens.weight[0, 0] += 1
    from model.serving.runner import fingerprint

    assert fingerprint(other.model) != mark()
