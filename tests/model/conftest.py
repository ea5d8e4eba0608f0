"""GPU tests run apart."""

import os
import subprocess
import sys

import pytest
import torch

APART = "STREAMER_TEST_APART"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a GPU test in a process of its own: after an illegal access a process can't use CUDA again."""
    if not pyfuncitem.get_closest_marker("gpu") or not torch.cuda.is_available() or APART in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    told = subprocess.run(
        command, env=os.environ | {APART: "1"}, cwd=pyfuncitem.config.rootpath, capture_output=True, text=True
    )
    print(told.stdout, told.stderr)
    assert told.returncode == 0, f"{pyfuncitem.nodeid} ended with {told.returncode}"
    return True
