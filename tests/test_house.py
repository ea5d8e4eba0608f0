"""What may import what: the contracts of pyproject.toml, which `lint-imports` holds."""

import subprocess
import sys
from pathlib import Path

import pytest


def test_every_import_keeps_the_contracts(pytestconfig: pytest.Config) -> None:
    """In a process of its own: it turns off the loggers of the one that it runs in."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    held = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=60)
    assert held.returncode == 0, held.stdout[-2000:]
