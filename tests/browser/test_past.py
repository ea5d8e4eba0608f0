"""The past in front of a user: the demo is recorded, the daemon is killed (-9) and started, and what was is asked, seen and found."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.browser.chromium import needs_chromium
from tests.browser.test_page import Visit, browser, visit  # noqa: F401 - fixtures
from tests.ports import free_port
from tests.streamer.serving import wait_for

pytestmark = needs_chromium
PLACE = """wall => {
  const bar = document.getElementById("bar");
  const { left, top, width, height } = bar.getBoundingClientRect();
  const [from, to] = ["aria-valuemin", "aria-valuemax"].map((name) => Number(bar.getAttribute(name)));
  return [left + ((wall - from) / (to - from)) * width, top + height / 2];
}"""


@contextmanager
def running(config: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon in a process of its own, once it watches; killed (-9) at the end."""
    command = [sys.executable, "-m", "streamer.cli.main", "run", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as daemon:
        try:
            wait_for(lambda: reachable(url) and live(url), 300)
            yield daemon
        finally:
            daemon.kill()


def reachable(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def live(url: str) -> bool:
    return [each["state"] for each in httpx.get(f"{url}/v1/streams").json()["streams"]] == ["live"]


def said(visit: Visit, question: str) -> str:  # noqa: F811 - a fixture's name
    """Asks, and returns the answer with what stands below it."""
    visit.page.fill("#question", question)
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector(".question:last-child, .question + .answer:last-child small")
    visit.page.wait_for_selector(".answer:last-child small")
    return visit.page.inner_text(".answer:last-child")


@pytest.mark.nightly
def test_pull_the_plug_and_it_still_knows(visit: Visit, tmp_path: Path) -> None:  # noqa: F811
    port = free_port()
    url, config = f"http://127.0.0.1:{port}", tmp_path / "streamer.yaml"
    notes = {"question": "What do you see?", "every": 2}
    camera = {"name": "demo", "source": "demo:", "record": True, "notes": notes}
    # Of what is older than a minute one snapshot a minute is kept.
    storage = {"folder": str(tmp_path / "state"), "replay": 60}
    config.write_text(yaml.safe_dump({"server": {"port": port}, "streams": [camera], "storage": storage}))
    timeline = f"{url}/v1/streams/demo/timeline"

    def noted(word: str) -> list[float]:
        found = httpx.get(timeline, params={"kind": "note", "search": word})
        return [each["wall"] for each in found.json()["entries"]] if found.status_code == 200 else []

    with running(config, url):
        wait_for(lambda: noted("banana") and noted("42"), 300)
        moment, gone = noted("42")[0], noted("banana")[0] + 5
        wait_for(lambda: time.time() > gone)  # of what is recorded a second or two are not on the disk yet
    with running(config, url):
        page = visit.go(url)
        page.wait_for_selector("#entries button:has-text('goes on with its memory')")
        assert "42" in said(visit, "What number was shown?")

        page.click("[data-span='300']")
        page.wait_for_selector("#legend:has-text('recorded')")
        x, y = page.evaluate(PLACE, moment)
        page.mouse.move(x - 60, y)
        page.mouse.down()
        x, y = page.evaluate(PLACE, moment)  # the bar goes on with the time
        page.mouse.move(x, y, steps=2)
        page.mouse.up()
        dragged = float(page.get_attribute("#bar", "aria-valuenow") or 0)
        assert abs(dragged - moment) < 3
        still = httpx.get(f"{url}/v1/streams/demo/still", params={"at": f"{dragged:.3f}"}).content
        shown = f"data:image/jpeg;base64,{base64.b64encode(still).decode()}"
        wait_for(lambda: page.get_attribute("#picture", "src") == shown)
        page.screenshot(path=str(tmp_path / "dragged.png"))
        assert "42" in said(visit, "What do you see?")

        page.fill("#search", "banana")
        banana = noted("banana")[0]
        page.click("#entries button:has-text('banana')")
        page.click("#play")
        wait_for(lambda: float(page.get_attribute("#bar", "aria-valuenow") or 0) > banana + 0.5)
        assert page.evaluate("document.getElementById('clip-shown').videoWidth") == 640
        assert "banana" in said(visit, "What do you see?")
        page.screenshot(path=str(tmp_path / "played.png"))
