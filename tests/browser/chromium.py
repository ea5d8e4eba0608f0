"""A real Chromium, without the realtime threads that it makes where it may: on a machine of two cores they starve all else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

WAIT = 120_000
"""Milliseconds, for all that is waited for: the machine may be busy."""
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


@contextmanager
def chromium(*flags: str) -> Iterator[playwright.Browser]:
    """No flag keeps Chromium from giving its audio threads a realtime class; only root may, and root can be forbidden to."""
    calm = "setpriv --bounding-set -sys_nice -- " if os.geteuid() == 0 else ""
    with tempfile.TemporaryDirectory() as folder, playwright.sync_playwright() as play:
        program = Path(folder) / "chromium"
        program.write_text(f'#!/bin/sh\nexec {calm}{CHROMIUM} "$@"\n')
        program.chmod(0o700)
        flags = ("--no-sandbox", "--disable-gpu", *flags)
        browser = play.chromium.launch(executable_path=program, headless=True, args=[*flags], timeout=WAIT)
        yield browser
        browser.close()
