"""The page in a real Chromium, against the real daemon: see, ask, add, remove, lose and regain the connection."""

from collections.abc import Iterator

import aioice.ice
import numpy as np
import pytest

from tests.browser.chromium import WAIT, chromium, needs_chromium, playwright
from tests.capture.lab import render
from tests.ports import free_port
from tests.streamer.serving import Daemon, wait_for

FLAGS = [
    "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    "--allow-loopback-in-peer-connection",
]  # fmt: skip
LONG = 30_000
"""Tokens of an answer that still goes on when somebody comes to stop it, who may take seconds."""

pytestmark = needs_chromium


class Visit:
    """A tab, with what it asked for and what went wrong in it."""

    def __init__(self, page: "playwright.Page") -> None:
        self.page = page
        self.requests: list[str] = []
        self.faults: list[str] = []
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def go(self, url: str) -> "playwright.Page":
        self.page.goto(url)
        self.page.wait_for_selector("#connection[data-state=open]")
        return self.page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["playwright.Browser"]:
    """With a clip for a camera: a white square on grey."""
    clip = tmp_path_factory.mktemp("camera") / "clip.mjpeg"
    render(clip, 100, size=(640, 360), codec="mjpeg", pixel_format="yuvj420p", format="mjpeg")
    with chromium(*FLAGS, f"--use-file-for-fake-video-capture={clip}") as browser:
        yield browser


@pytest.fixture
def visit(browser: "playwright.Browser") -> Iterator[Visit]:
    visit = Visit(browser.new_page(viewport={"width": 1280, "height": 800}))
    yield visit
    assert visit.faults == []
    visit.page.close()


def test_see_and_ask(visit: Visit, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    config = daemon.assistant.config
    answers = config.answers.model_copy(update={"max_tokens": LONG})
    monkeypatch.setattr(daemon.assistant, "config", config.model_copy(update={"answers": answers}))
    with daemon.served() as server:
        page = visit.go(server.url)
        page.wait_for_selector("#picture:not([hidden])")
        assert page.evaluate("document.getElementById('picture').naturalWidth") > 100
        page.wait_for_selector("#seen:has-text('fps')")
        page.fill("#question", "What do you see?")
        page.keyboard.press("Enter")
        page.wait_for_selector("#stop:not([hidden])")
        page.wait_for_selector(".answer:not(:empty)")
        page.click("#stop")
        page.wait_for_selector(".answer small")
        assert "cancelled" in page.inner_text(".answer small")
        assert page.inner_text(".question") == "What do you see?"
        assert all(url.startswith((server.url, "data:")) for url in visit.requests), visit.requests


def test_nothing_of_the_past_is_kept(visit: Visit, daemon: Daemon) -> None:
    with daemon.served() as server:
        page = visit.go(server.url)
        page.wait_for_selector("#why:has-text('Nothing of the past is kept here')")
        assert page.is_hidden("#tools") and page.is_hidden("#search")


def test_add_and_remove_a_stream(visit: Visit, daemon: Daemon) -> None:
    with daemon.served() as server:
        page = visit.go(server.url)
        page.wait_for_selector("#list .choose")
        page.fill("#name", "second")
        page.fill("#source", "demo:")
        page.click("text=Add stream")
        page.click("#list .choose:has-text('second')")
        page.wait_for_selector("#list .choose[aria-pressed=true]:has-text('second')")
        page.click("[aria-label='remove second']")
        page.wait_for_selector("#list .choose:has-text('second')", state="detached")
        page.fill("#name", "broken")
        page.fill("#source", "/no/such/file.mp4")
        page.click("text=Add stream")
        page.wait_for_selector("#notice:not([hidden])")
        assert "/no/such/file.mp4" in page.inner_text("#notice")


def test_lose_and_regain_the_connection(visit: Visit, daemon: Daemon) -> None:
    port = free_port()
    with daemon.served(listen=port) as server:
        page = visit.go(server.url)
    page.wait_for_selector("#connection[data-state=closed]")
    assert page.is_disabled("#send")
    with daemon.served(listen=port):
        page.wait_for_selector("#connection[data-state=open]")
        page.wait_for_selector("#picture:not([hidden])")


def test_publish_the_webcam(visit: Visit, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # aioice leaves loopback out, which may be all there is.
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
    with daemon.served() as server:
        visit.page.context.grant_permissions(["camera"], origin=server.url)
        page = visit.go(server.url)
        page.wait_for_selector("#list .choose")
        page.click("#publish")
        page.wait_for_selector("#publish:has-text('Stop publishing')")
        page.click("#list .choose:has-text('webcam')")
        page.wait_for_function("document.getElementById('picture').naturalHeight > 0")

        def seen() -> int:
            statuses = daemon.do(daemon.assistant.streams)
            return next((each.frames_seen for each in statuses if each.name == "webcam"), -1)

        wait_for(lambda: seen() > 10)
        frame = daemon.do(lambda: daemon.assistant.newest_frame("webcam"))
        assert frame is not None and frame.pixels.max() > 220
        assert np.median(frame.pixels) == pytest.approx(80, abs=8)
        page.fill("#question", "What do you see?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer:not(:empty)")
        page.click("#publish")
        wait_for(lambda: seen() == -1)
        page.wait_for_selector("#list .choose:has-text('webcam')", state="detached")


def test_phone_and_keyboard(visit: Visit, daemon: Daemon) -> None:
    with daemon.served() as server:
        visit.page.set_viewport_size({"width": 390, "height": 800})
        page = visit.go(server.url)
        page.wait_for_selector("#list .choose")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        missing = {"theme", "question", "name", "source", "publish", "choose"}
        for _ in range(
            60
        ):  # there is a button more for each stream and entry, and one that is drawn anew loses the focus
            page.keyboard.press("Tab")
            missing.discard(page.evaluate("document.activeElement.id || document.activeElement.className"))
            if not missing:
                break
        assert not missing
        page.click("#theme")
        theme = page.evaluate("document.documentElement.dataset.theme")
        page.click("#theme")
        assert {theme, page.evaluate("document.documentElement.dataset.theme")} == {"dark", "light"}
