"""The state folder and its writer: one daemon, private files, migrations, and disks that fail and mend."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.memory import store as storing
from streamer.memory.database import MIGRATIONS
from streamer.memory.folder import Folder, FolderError, default_folder
from streamer.memory.store import Store, StoreError
from tests.streamer.serving import wait_for

ROW = "INSERT INTO streams VALUES (?, '{}', 0)"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(storing, "RETRY_SECONDS", 0.01)
    store = Store(tmp_path / "state")
    yield store
    store.close()


def names(store: Store) -> list[str]:
    return [name for (name,) in store.read("SELECT name FROM streams ORDER BY rowid")]


def refused(path: Path) -> str:
    with pytest.raises(FolderError) as error:
        Store(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_all_is_private_and_stays_in_the_folder(store: Store) -> None:
    store.write(ROW, ("door",), now=True).result(60)
    place = store.folder.place("snapshots", "door")
    assert place == store.folder.path / "snapshots" / "door" and store.folder.streams("snapshots") == ["door"]
    for each in (store.folder.path, *store.folder.path.rglob("*")):
        assert not stat.S_IMODE(each.stat().st_mode) & 0o077, each
    for bad in ("..", "a/b", "", ".hidden", "a\0b"):
        with pytest.raises(ValueError):
            store.folder.place("snapshots", bad)


def test_the_folder_is_the_users_state_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/somewhere")
    assert default_folder() == Path("/var/somewhere/streamer")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", unset)
        assert default_folder() == Path.home() / ".local/state/streamer"


def test_rows_come_back_and_one_daemon_at_a_time_has_them(tmp_path: Path) -> None:
    first = Store(tmp_path)
    first.write(ROW, ("door",))
    assert f"in use by process {os.getpid()}" in refused(tmp_path)
    first.close()
    second = Store(tmp_path)
    assert names(second) == ["door"]
    with pytest.raises(StoreError):
        first.write(ROW, ("late",)).result(60)
    second.close()


def test_a_lock_dies_with_its_process_and_what_was_committed_does_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom streamer.memory.store import Store\n"
        f"store = Store(Path({str(tmp_path)!r}))\nstore.write({ROW!r}, ('door',), now=True).result(60)\n"
        "print('kept', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "kept\n"
        assert f"in use by process {other.pid}" in refused(tmp_path)
        other.send_signal(signal.SIGKILL)
    after = Store(tmp_path)
    assert names(after) == ["door"]
    after.close()


def test_a_newer_folder_and_one_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "streamer.sqlite") as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    assert "newer streamer" in refused(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert "belongs to user" in refused(tmp_path) and "--stateless" in refused(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.undo()
    assert "can't be used" in refused(tmp_path / "file")


def test_a_damaged_database_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "streamer.sqlite").write_bytes(b"no database" * 1000)
    store = Store(tmp_path)
    assert names(store) == [] and (tmp_path / "streamer.damaged").read_bytes().startswith(b"no database")
    store.close()


def test_a_full_disk_is_told_once_and_rows_are_written_once_there_is_room(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "streamer")
    logging.getLogger("streamer").propagate = True
    store.write(ROW, ("before",), now=True).result(60)
    pages = store.read("PRAGMA page_count")[0][0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be full
    long = store.write("INSERT INTO streams VALUES ('long', ?, 0)", ("x" * 100_000,), now=True)
    wait_for(lambda: store.fault)
    behind = store.write(ROW, ("behind",), now=True)
    assert "full" in (store.fault or "") and not long.done() and store.faults == 1
    store._database.execute("PRAGMA max_page_count = 100000")
    assert long.result(60) and behind.result(60)
    wait_for(lambda: store.fault is None)
    assert names(store) == ["before", "long", "behind"]
    told = [record.message for record in caplog.records]
    assert len(told) == 2 and "can be kept now" in told[0] and "kept again" in told[1]


@pytest.mark.parametrize("value", ["half a character \ud83d", 2**70])
def test_a_row_that_can_not_be_stored_holds_up_no_other(store: Store, value: object) -> None:
    row = store.write("INSERT INTO streams VALUES (?, ?, 0)", ("odd", value), now=True)
    behind = store.write(ROW, ("behind",), now=True)
    with pytest.raises((UnicodeError, OverflowError)):
        row.result(60)
    assert behind.result(60) and names(store) == ["behind"] and store.fault is None


def test_a_file_that_fails_is_told_and_the_next_one_is_tried(store: Store) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x.snapshot")

    failed = store.do(fail)
    with pytest.raises(OSError):
        failed.result(60)
    assert store.fault == "x.snapshot: No space left on device"
    assert store.write(ROW, ("door",), now=True).result(60) and store.fault, "rows that go well don't hide it"
    assert store.do(lambda: 7).result(60) == 7
    wait_for(lambda: store.fault is None)
    with pytest.raises(ZeroDivisionError):
        store.do(lambda: 1 / 0).result(60)
    assert store.fault is None and store.faults == 1


def test_what_waits_for_a_hanging_disk_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(storing, "MOST_ROWS", 10)
    monkeypatch.setattr(storing, "MOST_JOBS", 3)
    hang = threading.Event()
    store.do(lambda: hang.wait(60))
    wait_for(lambda: store._jobs == 0)
    rows = [store.write(ROW, (f"s{number}",)) for number in range(15)]
    jobs = [store.do(lambda: None) for _ in range(5)]
    assert store.rows_lost == 5 and all(isinstance(row.exception(0), StoreError) for row in rows[:5])
    assert [job.done() for job in jobs] == [False, False, False, True, True]
    hang.set()
    rows[-1].result(60)
    assert names(store) == [f"s{number}" for number in range(5, 15)]


def test_a_folder_that_is_removed_is_told_and_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "RETRY_SECONDS", 0.01)
    renewed: list[bool] = []
    store = Store(tmp_path / "state", lambda: renewed.append(True))
    store.write(ROW, ("before",), now=True).result(60)
    (tmp_path / "state").rename(tmp_path / "gone")
    store.write(ROW, ("after",), now=True).result(60)
    assert names(store) == ["after"] and renewed == [True] and store.faults == 1 and store.fault is None
    with pytest.raises(FolderError):
        Folder(tmp_path / "state")
    real, tries = storing.connect, iter((OSError(errno.ENOSPC, "No space left on device"), None))

    def connect(path: Path) -> sqlite3.Connection:
        if error := next(tries, None):
            raise error
        return real(path)

    monkeypatch.setattr(storing, "connect", connect)
    (tmp_path / "state").rename(tmp_path / "gone too")
    store.write(ROW, ("again",), now=True).result(60)  # though the folder was there before its database could be
    assert names(store) == ["again"] and store.faults == 2 and store.fault is None
    store.close()
