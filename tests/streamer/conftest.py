from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environments import install
from tests.streamer.serving import Daemon, Served

ROOT = Path(__file__).parents[2]
OPENAI = ROOT / ".venv-openai"
OPENAI_PACKAGE = "openai[realtime]>=3.51,<4"


@pytest.fixture(scope="module")
def daemon(one_for_all: Daemon) -> Iterator[Daemon]:
    one_for_all.wake()
    yield one_for_all
    one_for_all.rest()


@pytest.fixture(scope="module")
def server(daemon: Daemon) -> Iterator[Served]:
    with daemon.served() as server:
        yield server


@pytest.fixture(scope="session")
def openai_python() -> Path:
    """The interpreter of an environment with the official `openai` client in it; made once and kept."""
    executable, mark = OPENAI / "bin" / "python", OPENAI / "installed"
    if not mark.exists():
        done = install(OPENAI, OPENAI_PACKAGE)
        if done.returncode:
            pytest.skip(f"{OPENAI_PACKAGE} can't be installed: {done.stderr.strip().splitlines()[-1]}")
        mark.touch()
    return executable
