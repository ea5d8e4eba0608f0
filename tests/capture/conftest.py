"""What the tests of capture share."""

from tests.capture.lab import loopback, rtsp

__all__ = ["loopback", "rtsp"]
