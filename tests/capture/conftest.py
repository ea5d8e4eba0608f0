"""What the tests of capture share."""

from tests.capture.lab import rtsp

__all__ = ["rtsp"]
