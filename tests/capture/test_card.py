"""What is done where CUDA decodes and yet can't make pictures."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from capture.sources import tracks


def test_the_cpu_makes_pictures_where_the_card_can_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No card here can lack a compiler: what such a one says comes from a module in its place."""

    def prepare() -> None:
        raise RuntimeError("Failed to find a C compiler.\nSet CC.")

    monkeypatch.setattr(tracks, "find_spec", lambda name: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "capture.card", SimpleNamespace(prepare=prepare))
    tracks.card_lack.cache_clear()
    try:
        assert not any(tracks.on_card().is_hw_owned for _ in range(2))
    finally:
        tracks.card_lack.cache_clear()
    assert caplog.messages == ["hwaccel: the CPU makes pictures of what CUDA decodes (Failed to find a C compiler.)"]
