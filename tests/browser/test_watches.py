"""The page's watches in a real Chromium: one is made on a piece of the demo, its event comes with its picture, is judged and played."""

import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from capture.image import decode_image
from streamer.server.auth import token_digest
from streamer.watches import teller
from tests.browser.chromium import needs_chromium
from tests.browser.test_page import Visit, browser, visit  # noqa: F401 - fixtures
from tests.capture.lab import render
from tests.streamer.serving import Daemon, wait_for
from tests.watches.test_watches import demo

pytestmark = needs_chromium
TOKEN = "a-token-of-the-tests"
NOTIFIED = """window.told = [];
window.Notification = class { constructor(title, more) { window.told.push([title, more.body]); } };
Notification.permission = "default";
Notification.requestPermission = async () => Notification.permission = "granted";"""
LOADED = "document.querySelector('{}').naturalWidth > 100"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Three seconds without a banana and two with one, again and again; and a second camera."""
    folder = tmp_path_factory.mktemp("watched")
    frames = [*demo(31.0, 34.0), *demo(35.0, 37.0)]
    clip = render(folder / "banana.mp4", len(frames), fps=5, size=frames[0].shape[1::-1], picture=lambda n: frames[n])
    camera = {"name": "yard", "source": str(clip), "loop": True, "record": True}
    other = {"name": "door", "source": "demo:", "fps": 1}
    daemon = Daemon(model={"threads": 1}, streams=[camera, other], storage={"folder": str(folder / "state")})
    yield daemon
    daemon.stop()


def test_make_a_watch_and_see_judge_and_play_its_event(
    visit: Visit,  # noqa: F811
    recorded: Daemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teller, "GROWS", -9.0)  # the clip is told of a second after the event, as far as it goes then
    token = {"name": "me", "digest": f"sha256:{token_digest(TOKEN)}", "scopes": ["admin"]}
    with recorded.served(server={"tokens": [token]}) as server:
        page = visit.page
        page.add_init_script(NOTIFIED)

        def enter() -> None:
            page.fill("#token", TOKEN)
            page.press("#token", "Enter")
            page.wait_for_selector("#connection[data-state=open]")

        page.goto(server.url)
        enter()
        page.wait_for_selector("#grid:not([hidden]) button[data-state=live]:has-text('door')")
        page.click("#notify")
        page.wait_for_selector("#notify[aria-pressed=true]")
        page.focus("#watch-more summary")
        page.keyboard.press("Enter")
        page.fill("#watch-question", "What is there?")
        page.fill("#watch-name", "fruit")
        page.select_option("#watch-stream", "yard")
        page.press("#watch-name", "Enter")
        page.wait_for_selector("#notice:has-text('set when to changes')")
        page.fill("#watch-question", "Is there a banana?")
        page.press("#watch-question", "Enter")
        page.wait_for_selector("#watch-list li:has-text('Is there a banana?')")
        page.wait_for_selector("#notice", state="hidden")
        page.wait_for_selector("#watch-list .value:has-text('%')")
        page.wait_for_selector("#event-list li:has-text('fruit'):has-text('yard')")
        wait_for(lambda: page.evaluate(LOADED.format("#event-list li:last-child .still img")))
        assert page.evaluate("told") and page.evaluate("told[0]") == ["fruit: yes", "Is there a banana?\nyard"]
        wait_for(lambda: page.inner_text("#grid button:has-text('yard') .so") == "fruit")
        wait_for(lambda: page.evaluate(LOADED.format("#grid button:last-child img")))

        event = page.get_attribute("#event-list li:last-child", "data-event")
        page.click(f"[data-event={event}] [data-verdict=right]")
        page.wait_for_selector(f"[data-event={event}] [data-verdict=right][aria-pressed=true]")
        kept = recorded.run(lambda: recorded.assistant.watches.kept.after(""))
        assert next(each for each in kept if each["id"] == event)["feedback"] == "right"
        page.wait_for_selector("#watch-list .does:has-text('1 right')")
        page.click(f"[data-event={event}] .still")
        wait_for(lambda: page.evaluate(LOADED.format("#player img")))
        with urllib.request.urlopen(f"{server.url}/{page.get_attribute('#player a', 'href')}", timeout=60) as reply:
            still = recorded.run(lambda: recorded.assistant.watches.kept.still(event))
            whole, seen = (decode_image(each, 8_192).astype(int) for each in (reply.read(), still))
        assert whole.shape == seen.shape and np.abs(whole - seen).mean() < 4, (
            "the frame that decided, from the recording"
        )
        page.keyboard.press("Escape")
        page.click(
            f"[data-event={event}] button:has-text('Play clip')", timeout=90_000
        )  # as long as a late clip is tried for
        wait_for(lambda: page.evaluate("document.querySelector('#player video').currentTime > 0.1"))
        page.click("#player button")

        page.click("#watch-list button:has-text('Snooze')")
        page.wait_for_selector("#watch-list .why:has-text('silent: snooze')")
        page.click("#watch-list button:has-text('Wake')")
        page.click("#watch-list button:has-text('Pause')")
        page.wait_for_selector("#watch-list [data-belief=paused]")
        page.set_viewport_size({"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.reload()
        enter()
        page.wait_for_selector(f"[data-event={event}] [data-verdict=right][aria-pressed=true]")
        page.click("[aria-label='remove fruit']")
        page.wait_for_selector("#no-watches:not([hidden])")
        assert all(url.startswith((server.url, "data:")) for url in visit.requests), visit.requests
