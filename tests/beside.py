"""Tests that mostly wait, run beside one another: those of a module that are marked `beside`, and that are to run, begin together.

Each stays a test of its own, with a verdict of its own: where its turn comes, it waits for what became of it. One that needs
a fixture of a single test's (monkeypatch, caplog …) runs alone, after the others; what every test has (`EVERY`) hinders none.
A daemon that keeps something needs a state folder of its own there, as the environment is all tests'.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar

import pytest
from hypothesis import is_hypothesis_test

TOGETHER = 6
EVERY = ("adding_up", "state_home")
"""Fixtures of single tests that all tests have: what they look after is the process', whichever test it comes from."""
RUNNING = pytest.StashKey[dict[str, Future[None]]]()
NAME: ContextVar[str] = ContextVar("NAME")
"""The test that this thread runs."""


def parameters(item: pytest.Function) -> dict[str, object]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def shared(item: pytest.Item) -> bool:
    """Whether a test may run beside others: all that it asks for is shared, but for a folder, of which it can have its own."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker("beside") is None:
        return False
    if is_hypothesis_test(item.obj) or any(mark.args[0] for mark in item.iter_markers("skipif")):
        return False
    own = {"tmp_path", *EVERY, *parameters(item)}
    found = item._fixtureinfo.name2fixturedefs
    return all(fixtures[-1].scope != "function" for name, fixtures in found.items() if name not in own)


def named(name: str, test: Callable[..., None], arguments: dict[str, object]) -> None:
    NAME.set(name)
    test(**arguments)


def begin(first: pytest.Function, module: pytest.Module) -> dict[str, Future[None]]:
    mark = first.get_closest_marker("beside")
    pool = ThreadPoolExecutor(mark.args[0] if mark and mark.args else TOGETHER, "beside")
    running = {}
    for item in first.session.items:
        if item.getparent(pytest.Module) is not module or not shared(item):
            continue
        assert isinstance(item, pytest.Function)
        given = parameters(item)
        for name in item.fixturenames:
            if name == "tmp_path":
                given[name] = first._request.getfixturevalue("tmp_path_factory").mktemp("beside")
            elif name not in given and name not in EVERY:
                given[name] = first._request.getfixturevalue(name)
        wanted = inspect.signature(item.obj).parameters
        arguments = {name: given[name] for name in wanted}
        running[item.nodeid] = pool.submit(named, item.name, item.obj, arguments)
    module.addfinalizer(lambda: pool.shutdown(cancel_futures=True))
    return running


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    NAME.set(pyfuncitem.name)
    module = pyfuncitem.getparent(pytest.Module)
    assert module is not None
    if RUNNING not in module.stash and shared(pyfuncitem):
        module.stash[RUNNING] = begin(pyfuncitem, module)
    running = module.stash.get(RUNNING, {})
    own = running.pop(pyfuncitem.nodeid, None)
    if own is None:
        wait(running.values())
        return None
    own.result()
    return True
