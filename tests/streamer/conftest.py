from collections.abc import Iterator

import pytest

from tests.streamer.serving import Daemon, Served


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="session")
def server(daemon: Daemon) -> Iterator[Served]:
    with daemon.served() as server:
        yield server
