"""What the tests of memory share."""

import pytest

from streamer.memory import keeper
from streamer.memory.recording import Recordings
from streamer.memory.store import Store


@pytest.fixture(autouse=True)
def all_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes or ends a daemon here waits until the disk has it, however busy the machine is."""
    monkeypatch.setattr(keeper, "PATIENCE", 60.0)
    monkeypatch.setattr(keeper, "LAST_SECONDS", 60.0)
    for close in (Store.close, Recordings.close):
        monkeypatch.setattr(close, "__defaults__", (60.0,))
