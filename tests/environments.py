"""Environments of their own, in which less or other things are installed than where the tests run."""

import subprocess
import sys
from pathlib import Path


def install(folder: Path, *packages: str, seconds: float = 200) -> subprocess.CompletedProcess[str]:
    """An environment of its own with these packages in it, installed by this environment's pip: one more pip takes seconds."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True, timeout=200)
    return pip(folder / "bin" / "python", "install", "--quiet", *packages, seconds=seconds)


def pip(executable: Path, *arguments: str, seconds: float = 200) -> subprocess.CompletedProcess[str]:
    """What pip does for another interpreter."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)
