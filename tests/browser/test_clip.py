"""A recorded clip in a real Chromium: it plays, and seeks to what was there; and stills of the same moments."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from capture.image import decode_image
from tests.browser.chromium import WAIT, chromium, needs_chromium
from tests.capture.lab import render
from tests.streamer.serving import Daemon, wait_for
from tests.tiny import TINY

pytestmark = needs_chromium
SECONDS = 8
SEEN = """async ([url, times]) => {
  const video = document.createElement("video");
  video.muted = true;
  const told = name => new Promise((good, bad) => {
    video.addEventListener(name, good, { once: true });
    video.addEventListener("error", () => bad(video.error.message), { once: true });
  });
  // "seeked" may come before the picture does.
  const shown = time => new Promise(good => {
    const look = (_, { mediaTime }) => Math.abs(mediaTime - time) < 0.1 ? good() : video.requestVideoFrameCallback(look);
    video.requestVideoFrameCallback(look);
  });
  document.body.append(video);
  const ready = told("loadeddata");
  video.src = url;
  await ready;
  const canvas = document.createElement("canvas");
  const greys = [];
  for (const time of times) {
    const sought = Promise.all([told("seeked"), shown(time)]);
    video.currentTime = time;
    await sought;
    canvas.getContext("2d").drawImage(video, 0, 0, 16, 16);
    greys.push(canvas.getContext("2d").getImageData(8, 8, 1, 1).data[0]);
  }
  video.currentTime = 0;
  await video.play();
  await told("timeupdate");
  await told("timeupdate");
  return { duration: video.duration, greys, played: video.currentTime, seekable: video.seekable.end(0) };
}"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A stream whose seconds are of different greys, and what is recorded of it."""
    folder = tmp_path_factory.mktemp("recorded")
    clip = render(
        folder / "clip.mp4",
        25 * SECONDS,
        size=(160, 90),
        picture=lambda n: np.full((90, 160, 3), 20 + 28 * (n // 25), np.uint8),
    )
    camera = {"name": "door", "source": str(clip), "record": True}
    for attempt in range(3):
        daemon = Daemon(model=TINY, streams=[camera], storage={"folder": str(folder / f"state-{attempt}")})
        if played_at_its_rate(daemon):
            break
        daemon.stop()
    else:
        pytest.fail(f"a busy machine: {SECONDS} s of video were not played at their rate in three attempts")
    yield daemon
    daemon.stop()


def played_at_its_rate(daemon: Daemon) -> bool:
    """Whether nothing stood still while the file was played: what a stopped machine didn't record is no fault of the clip."""
    keeper = daemon.assistant.keeper
    assert keeper is not None
    wait_for(lambda: daemon.assistant.streams()[0].state == "ended")
    wait_for(lambda: keeper.recordings.of("door")[-1].size > 0 and keeper.recordings.fault is None)
    every = keeper.recordings.of("door")
    return abs(every[-1].ends - every[0].begins - SECONDS) < 0.2


def test_a_clip_plays_and_seeks(recorded: Daemon) -> None:
    keeper = recorded.assistant.keeper
    assert keeper is not None
    every = keeper.recordings.of("door")
    begins, last = every[0].begins, every[-1]
    wait_for(lambda: time.time() > last.ends + 2)
    with recorded.served() as server:
        place = f"{server.url}/v1/streams/door"
        url = f"{place}/clip?from={begins + 1.2:.3f}&to={begins + 7.2:.3f}"
        answer = httpx.get(url, headers={"Range": "bytes=100-199"})
        assert answer.status_code == 206 and len(answer.content) == 100
        late = float(answer.headers["Streamer-Begins"]) - begins
        assert 0.5 < late <= 1.25
        times = [5.3, 2.3, 4.3]
        with chromium("--autoplay-policy=no-user-gesture-required") as browser:
            page = browser.new_page()
            page.set_default_timeout(WAIT)
            page.goto(f"{server.url}/healthz")
            seen = page.evaluate(SEEN, [url, times])
        assert (
            abs(seen["duration"] - (7.2 - late)) < 0.3 and seen["seekable"] == seen["duration"] and seen["played"] > 0
        )
        for at, grey in zip(times, seen["greys"], strict=True):
            assert abs(grey - (20 + 28 * int(at + late))) < 8, (at, late, seen)
        for second in (1.5, 6.5):
            still = httpx.get(f"{place}/still?at={begins + second:.3f}")
            assert still.headers["Content-Type"] == "image/jpeg"
            assert abs(float(decode_image(still.content, 640).mean()) - (20 + 28 * int(second))) < 8
        refusals = {
            "clip": ("missing_required_parameter", 400),
            "clip?from=yesterday": ("bad_moment", 400),
            "still?at=2099-01-01": ("bad_moment", 400),
            "still?at=2001-01-01": ("no_recording", 404),
            "clip?from=1 hour ago&to=50 minutes ago": ("no_recording", 404),
            "clip?from=1 minute ago&codec=mjpeg": ("bad_option", 400),
        }
        for path, (code, status) in refusals.items():
            refused = httpx.get(f"{place}/{path}")
            assert (refused.json()["error"]["code"], refused.status_code) == (code, status), path
        assert httpx.get(f"{server.url}/v1/streams/..%2fdoor/clip?from=now").status_code == 404
        assert "streamer_recording_lost_total 0" in httpx.get(f"{server.url}/metrics").text
        assert Path(keeper.clips.place).is_dir()
