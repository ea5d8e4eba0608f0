"""What all tests share: a skip that is not for want of a GPU fails the run where STREAMER_NO_SKIPS is set."""

import os
import tempfile
from collections.abc import Iterator
from functools import cache

import httpx._config as timing
import httpx._transports.default as transports
import hypothesis.internal.conjecture.optimiser  # noqa: F401  # amid a test, CPython 3.11's parser may fail (gh-106905)
import pytest
import torch
from hypothesis import HealthCheck, settings

from model.world.render import Assets
from tests.adding_up import FOUND, watch_engines
from tests.beside import pytest_pyfunc_call
from tests.streamer.serving import Daemon
from tests.wire import watch_sessions

__all__ = ["pytest_pyfunc_call"]

watch_sessions()
watch_engines(FOUND.extend)
KEPT = tempfile.TemporaryDirectory(prefix="streamer-tests-")
os.environ["XDG_STATE_HOME"] = KEPT.name  # of daemons that a fixture of many tests starts; each test has one of its own
# A second thread costs more than it brings: tests are small, and the cores are busy with other tests.
torch.set_num_threads(1)
# Each `httpx.get` would read all certificate authorities anew, which takes more of a core than the rest of most tests.
transports.create_ssl_context = cache(transports.create_ssl_context)
# What a busy machine answers after httpx's five seconds is answered.
vars(timing.DEFAULT_TIMEOUT_CONFIG).update(timing.Timeout(60).as_dict())
Assets.load = cache(Assets.load)  # type: ignore[method-assign]  # nobody changes them
# By the clock, a busy machine fails an example that takes more than 200 ms, or that is slow to draw.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def one_for_all() -> Iterator[Daemon]:
    """The usual daemon, started once for all modules that ask for it; each wakes it, and lets it rest afterwards."""
    daemon = Daemon()
    yield daemon
    daemon.stop()


@pytest.fixture(autouse=True)
def adding_up() -> Iterator[None]:
    """Whatever engine ran in this process meanwhile, its slots, frames and answers added up whenever it was idle."""
    yield
    found = FOUND.copy()
    FOUND.clear()
    assert not found


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test's daemon keeps is kept for that test alone, and never in the home of whoever runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    os.environ["XDG_STATE_HOME"] = KEPT.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first, so that no worker is left alone with one; GPU tests skip themselves without CUDA."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turns skips into a failure in CI, naming each reason."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("STREAMER_NO_SKIPS") or reporter is None:
        return
    reasons = {
        str(report.longrepr[2]) for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)
    }
    unwanted = sorted(reason for reason in reasons if "needs CUDA" not in reason)
    if unwanted:
        reporter.write_line(f"skipped though nothing may be: {'; '.join(unwanted)}", red=True)
        session.exitstatus = 1
