"""The browser tests' daemon."""

from collections.abc import Iterator

import pytest

from tests.streamer.serving import Daemon


@pytest.fixture(scope="module")
def daemon(one_for_all: Daemon) -> Iterator[Daemon]:
    one_for_all.wake()
    yield one_for_all
    one_for_all.rest()
