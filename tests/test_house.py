"""The house's order: what may import what, as `lint-imports` holds it, and that the map of it is whole."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("streamer", "capture", "protocols", "model")


def test_every_import_keeps_the_contracts(pytestconfig: pytest.Config) -> None:
    """In a process of its own: it turns off the loggers of the one that it runs in."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    held = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=250)
    assert held.returncode == 0, held.stdout[-2000:]


def test_the_architecture_names_every_file(pytestconfig: pytest.Config) -> None:
    root = pytestconfig.rootpath
    named = re.findall(r"^\| \[[^]]+\]\(\.\./([^)]+\.py)\)", (root / "docs/architecture.md").read_text(), re.MULTILINE)
    there = [
        str(path.relative_to(root))
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(named) == sorted(there)


def test_no_file_is_longer_than_450_lines(pytestconfig: pytest.Config) -> None:
    """Tests, which are read one by one, may be."""
    root = pytestconfig.rootpath
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    lines = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in files}
    assert not {name: count for name, count in lines.items() if count > 450}
