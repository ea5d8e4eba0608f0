"""Whatever shadows the neighbours is named, and the client alone does without them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.parametrize(
    "code", ["import streamer; streamer.Assistant", "import streamer.config", "from streamer import Assistant"]
)
def test_refuses_a_shadowing_model(tmp_path: Path, code: str) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('the wrong model was imported')\n")
    refused = run(tmp_path, code)
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert str(tmp_path / "model.py") in last and "run from another folder" in last


def test_imports_where_nothing_shadows(tmp_path: Path) -> None:
    assert run(tmp_path, "import streamer; assert 'torch' not in sys.modules").returncode == 0


def test_the_client_does_without_the_neighbours(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('the wrong model was imported')\n")
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "__init__.py").write_text("")
    alone = "assert not {'torch', 'model', 'capture', 'protocols', 'pydantic'} & sys.modules.keys()"
    let_in = run(tmp_path, f"import streamer.client; {alone}")
    assert let_in.returncode == 0, let_in.stderr
    refused = run(tmp_path, "import streamer.client; from streamer import Assistant")
    assert refused.returncode == 1 and "shadows" in refused.stderr
