"""What may import what: the contracts of pyproject.toml, which `lint-imports` holds."""

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_every_import_keeps_the_contracts(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS
