"""The browser tests' daemon."""

from collections.abc import Iterator

import pytest

from tests.streamer.serving import Daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.stop()
