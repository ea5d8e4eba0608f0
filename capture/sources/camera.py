"""`camera://0`: local cameras through OpenCV, where FFmpeg can't read them; and which cameras there are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from capture.source import SourceError, SourceOptions
from capture.sources.base import SourceShell

LOST_READS = 25
"""Reads in a row that bring no picture before a camera counts as unplugged."""


class CameraSource(SourceShell):
    """A camera by its number."""

    def __init__(self, url: str, options: SourceOptions) -> None:
        super().__init__(url, options, endless=True, live=True)
        number = url.removeprefix("camera://").removeprefix("camera:")
        if not number.isdigit():
            raise SourceError(f"source {url}: a camera is named by its number, as in camera://0")
        self.number = int(number)
        self.cv2 = opencv()

    def connect(self, generation: int) -> None:
        """See `SourceShell.connect`."""
        camera = self.cv2.VideoCapture(self.number)
        try:
            self.configure(camera)
            lost = 0
            while self.wanted(generation):
                taken, pixels = camera.read()
                lost = 0 if taken else lost + 1
                if lost >= LOST_READS:
                    raise SourceError(f"{self.name}: the camera gives no pictures any more: is it still plugged in?")
                if taken and not self.deliver(generation, lambda raw=pixels: self.upright(raw), None, time.monotonic()):  # type: ignore[misc]
                    return
        finally:
            camera.release()

    def configure(self, camera: Any) -> None:
        """Asks for size, rate and format; raises SourceError where there is no camera."""
        if not camera.isOpened():
            raise SourceError(
                f"{self.name}: there is no camera {self.number}; `streamer sources` lists those there are"
            )
        cv2, options = self.cv2, self.options
        if options.pixel_format:
            camera.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*options.pixel_format))
        if options.camera_size:
            camera.set(cv2.CAP_PROP_FRAME_WIDTH, options.camera_size[0])
            camera.set(cv2.CAP_PROP_FRAME_HEIGHT, options.camera_size[1])
        if options.camera_rate:
            camera.set(cv2.CAP_PROP_FPS, options.camera_rate)
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def upright(self, raw: Any) -> np.ndarray:
        """RGB from OpenCV's BGR, scaled down to `largest_side`."""
        share = min(1.0, self.options.largest_side / max(raw.shape[:2]))
        if share < 1:
            raw = self.cv2.resize(raw, None, fx=share, fy=share, interpolation=self.cv2.INTER_AREA)
        return np.asarray(self.cv2.cvtColor(raw, self.cv2.COLOR_BGR2RGB))


def opencv() -> Any:
    """OpenCV, which only local cameras need. Raises SourceError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise SourceError(
            "camera:// needs OpenCV: pip install 'streamer[camera]', or read the device with v4l2:///dev/video0"
        ) from None
    return cv2


def list_cameras(devices: Path = Path("/sys/class/video4linux")) -> list[tuple[str, str]]:
    """The local cameras as (URL, name); empty where there are none."""
    found = []
    for device in sorted(devices.glob("video*")) if devices.is_dir() else []:
        name = device / "name"
        found.append((f"v4l2:///dev/{device.name}", name.read_text().strip() if name.is_file() else device.name))
    return found
