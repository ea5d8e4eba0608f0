"""What the attacks share: a daemon to attack, and how fast it sees and answers meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.streamer.serving import Daemon, Served
from tests.streamer.test_hardness import certificate as certificate


@pytest.fixture(scope="module")
def daemon(one_for_all: Daemon) -> Iterator[Daemon]:
    one_for_all.wake()
    yield one_for_all
    one_for_all.rest()


@pytest.fixture
def server(daemon: Daemon) -> Iterator[Served]:
    """Anew for each attack, with limits of its own."""
    with daemon.served() as server:
        yield server
