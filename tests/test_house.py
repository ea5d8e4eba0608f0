"""The leaves of the house import neither each other nor the daemon."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("streamer", "model", "capture", "protocols")
LEAVES = PACKAGES[1:]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_no_neighbour(leaf: str) -> None:
    files = list((ROOT / leaf).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & (set(PACKAGES) - {leaf}), path


@pytest.mark.parametrize(("leaf", "banned"), [("protocols", {"asyncio", "socket", "torch"}), ("model", {"asyncio"})])
def test_leaf_keeps_to_its_means(leaf: str, banned: set[str]) -> None:
    for path in (ROOT / leaf).rglob("*.py"):
        assert not imported(path) & banned, path
