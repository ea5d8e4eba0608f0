"""`streamer index`, `ask --recording` and `recordings`, where they are interrupted, hindered or asked what can't be."""

from __future__ import annotations

import json
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import Runner
from model.serving.backends import Together
from streamer import reading
from streamer.cli.main import main
from streamer.config import parse_config
from streamer.indexing import Recording, StoppedError, file_video, index_video, load
from streamer.memory.indexes import Facts, Index, RecordingError, named
from streamer.reading import Place
from tests.memory.test_indexes import PLENTY, QUESTION, film, indexed


@pytest.fixture(scope="module")
def runner() -> Runner:
    return load(parse_config({}))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state folder of the commands."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "streamer"


def interrupt_at(steps: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Sends this process a Ctrl-C, or several, when so many steps have been read."""
    end = reading.Reading.end

    def ended(self: reading.Reading, begun: reading.Begun | None) -> None:
        if begun is not None and len(self.facts.steps) == steps:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)  # which is handled at once
        end(self, begun)

    monkeypatch.setattr(reading.Reading, "end", ended)


@pytest.mark.parametrize(("together", "after"), [(1, 3), (3, 3), (1, 7)])
def test_what_was_read_before_an_interrupt_is_kept(
    together: int,
    after: int,
    runner: Runner,
    state: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Though nothing was to be kept yet, and in the last step too; and the whole is as if nothing had happened."""
    path, before = film(tmp_path / "a.mkv"), signal.getsignal(signal.SIGINT)
    whole = indexed(runner, tmp_path / "one", path)
    make = Together.__init__

    def made(self: Together, *given: Any) -> None:
        make(self, *given)
        self.most_steps = together

    monkeypatch.setattr(Together, "__init__", made)
    with monkeypatch.context() as patch:
        interrupt_at(after, patch)
        assert main(["index", str(path)]) == 130
    index, facts = named(state, "a") or pytest.fail("nothing is kept")
    assert after < len(facts.steps) <= (8 if together > 1 else after + 2) and not facts.complete
    assert signal.getsignal(signal.SIGINT) is before
    told = f"a: interrupted: its first {facts.seconds:.0f} s are kept; the same command goes on"
    assert told in capsys.readouterr()[1]
    assert main(["index", str(path)]) == 0
    index, found = named(state, "a") or pytest.fail("it is gone")
    assert (found.tokens, found.steps, found.complete) == (whole.tokens, whole.steps, True)
    parts, expected = index.parts(found), Index(tmp_path / "one" / "indexes" / "a").parts(whole)
    assert all(torch.allclose(parts[name], part, atol=1e-4) for name, part in expected.items())


def test_a_second_interrupt_is_as_ever(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Together, "most_steps", 1)
    with monkeypatch.context() as patch:
        interrupt_at(0, patch, times=2)
        assert main(["index", str(film(tmp_path / "a.mkv"))]) == 130
    assert "interrupted" not in capsys.readouterr()[1]


def test_a_note_of_before_is_not_kept(runner: Runner, state: Path, tmp_path: Path) -> None:
    """Where there is more room now, and the reading is stopped."""
    path = film(tmp_path / "a.mkv")
    assert "is full" in indexed(runner, state, path, budget=1_300_000).note

    def stop(facts: Facts) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        index_video(Place(runner), state, file_video(state, str(path)), 2.0, PLENTY, stop)
    _, facts = named(state, "a") or pytest.fail("it is gone")
    assert not facts.note and not facts.complete


def test_who_asks_is_told_whether_it_is_being_read(
    runner: Runner, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexed(runner, state, film(tmp_path / "a.mkv"), budget=1_300_000)
    writer = Index(state / "indexes" / "a")
    writer.open()
    assert main(["ask", "--recording", "a", QUESTION]) == 0
    assert "are read: it is being indexed" in capsys.readouterr()[1]
    writer.close()
    assert main(["ask", "--recording", "a", QUESTION]) == 0
    assert "are read: index it again to go on" in capsys.readouterr()[1]


def test_a_write_that_fails_takes_back_what_it_began(tmp_path: Path) -> None:
    """By a bound on the size of files, which the state exceeds."""
    index, limits = Index(tmp_path / "a"), resource.getrlimit(resource.RLIMIT_FSIZE)
    index.open()
    facts, rows = Facts("a", "a.mkv", 1, 1.0, "nano", "f", 2.0, tokens=2), torch.arange(8.0).view(4, 2)
    index.write(facts, {"x": torch.zeros(1)}, rows[:2])
    before = {each.name: each.read_bytes() for each in index.folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            index.write(replace(facts, tokens=4), {"x": torch.zeros(100_000)}, rows[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {each.name: each.read_bytes() for each in index.folder.iterdir()} == before
    index.close()


def test_an_interrupt_before_the_first_step_leaves_nothing(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = reading.Reading.end

    def refuse(self: reading.Reading, begun: reading.Begun | None) -> None:
        if begun is not None:
            self.told(self.facts)
            read(self, begun)

    monkeypatch.setattr(reading.Reading, "end", refuse)
    monkeypatch.setattr(reading.Reading, "keep", lambda self: None)
    monkeypatch.setattr("streamer.cli.recordings._bar", lambda video: lambda facts: os.kill(os.getpid(), signal.SIGINT))
    assert main(["index", str(film(tmp_path / "a.mkv"))]) == 130
    assert "a: interrupted: nothing of it is kept yet" in capsys.readouterr()[1]
    assert not list((state / "indexes").iterdir())


def test_what_is_written_while_it_is_loaded_is_loaded_as_it_is_then(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mkv", 4)
    facts = indexed(runner, tmp_path, path)
    index, parts = Index(tmp_path / "indexes" / "a"), Index.parts
    older = Facts(**{**json.loads((index.folder / "index.json").read_text()), "tokens": facts.tokens - 64})
    asked: list[int] = []

    def watched(self: Index, told: Facts) -> Any:
        asked.append(told.tokens)
        return parts(self, told)

    monkeypatch.setattr(Index, "parts", watched)
    assert Recording(runner, index, older).facts == facts and asked == [facts.tokens - 64, facts.tokens]


def test_an_index_that_is_written_is_not_removed(
    runner: Runner, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = indexed(runner, state, film(tmp_path / "a.mkv", 2))
    writer = Index(state / "indexes" / facts.name)
    writer.open()
    assert main(["recordings", "remove", "a"]) == 1
    assert "a is being indexed by another process: stop that first" in capsys.readouterr()[1]
    writer.close()
    assert main(["recordings", "remove", "a"]) == 0 and not writer.folder.exists()


def test_what_has_no_facts_is_listed_and_removed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = state / "indexes" / "torn"
    place.mkdir(parents=True)
    (place / "index.json").write_text('{"x": 1}')
    assert main(["recordings", "list"]) == 0
    assert capsys.readouterr()[0] == "torn  0 MB  (nothing whole is kept of it: index it again, or remove it)\n"
    assert main(["recordings", "list", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr()[0])] == ["torn"]
    assert main(["recordings", "remove", "torn"]) == 0 and not place.exists()
    assert main(["recordings", "remove", "../torn"]) == 1


def test_an_index_keeps_its_name_whatever_its_file_is_called(runner: Runner, tmp_path: Path) -> None:
    path = film(tmp_path / "video.mkv", 2)
    facts = indexed(runner, tmp_path, path)
    place = tmp_path / "indexes"
    (place / "video").rename(place / "film")
    file = place / "film" / "index.json"
    file.write_text(file.read_text().replace('"name": "video"', '"name": "film"'))
    assert file_video(tmp_path, str(path)).name == "film" and facts.name == "video"


def test_a_recording_is_asked_what_it_can_be(
    runner: Runner, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = film(tmp_path / "a.mkv", 2)
    indexed(runner, state, path)
    for wrong, said in (
        (["--seed", "5"], "leave --seed out"),
        (["--from", "13:00"], "leave --from out"),
        (["--token-file", "x"], "leave --token-file out"),
        (["--max-tokens", "0"], "--max-tokens 0 must be at least 1"),
    ):
        assert main(["ask", "--recording", "a", QUESTION, *wrong]) == 1
        assert said in capsys.readouterr()[1]
    assert main(["ask", "--recording", "a", " "]) == 1 and "the question is empty" in capsys.readouterr()[1]
    assert main(["ask", "--recording", "", QUESTION]) == 1 and "'' is not indexed" in capsys.readouterr()[1]
    film(path, 3)
    assert main(["ask", "--recording", "a", QUESTION]) == 0
    assert f"{path} has changed since it was indexed" in capsys.readouterr()[1]


def test_an_index_that_is_removed_while_it_is_read_says_so(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "KEEP_SECONDS", 0.0)
    write = Index.write

    def removed(self: Index, *given: Any) -> None:
        write(self, *given)
        self.remove()

    monkeypatch.setattr(Index, "write", removed)
    with pytest.raises(RecordingError, match="a was removed while it was read"):
        indexed(runner, tmp_path, film(tmp_path / "a.mkv"))
