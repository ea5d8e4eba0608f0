"""The page's timeline in a real Chromium: the demo is recorded, seen, asked about where it was, searched and saved."""

import re
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from capture.image import decode_image
from tests.browser.chromium import needs_chromium
from tests.browser.test_page import LONG, Visit, browser, visit  # noqa: F401 - fixtures
from tests.streamer.serving import CONFIG, Daemon, wait_for
from tests.tiny import TINY

pytestmark = needs_chromium
BANANA = 'is a <img src=x onerror="document.title=1"> banana there?'
FILLED = """() => {
  const bar = document.getElementById("bar");
  const pixels = bar.getContext("2d").getImageData(0, 0, bar.width, bar.height).data;
  return pixels.some(value => value > 0);
}"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    camera = {"name": "demo", "source": "demo:", "fps": 2, "record": True, "keep_questions": True}
    folder = str(tmp_path_factory.mktemp("recorded") / "state")
    answers = {**CONFIG["answers"], "max_tokens": LONG}
    daemon = Daemon(model=TINY, streams=[camera], storage={"folder": folder, "every": 1}, answers=answers)
    yield daemon
    daemon.stop()


def ask(visit: Visit, question: str) -> str:  # noqa: F811 - a fixture's name
    """Asks, stops the answer as it begins, and returns what stands below it."""
    page = visit.page
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer:last-child:not(:empty)")
    page.click("#stop")
    page.wait_for_selector(".answer:last-child small")
    return page.inner_text(".answer:last-child small")


def test_see_ask_and_search_the_past(visit: Visit, recorded: Daemon) -> None:  # noqa: F811
    keeper = recorded.assistant.keeper
    assert keeper is not None
    wait_for(lambda: keeper.snapshots.of("demo"))
    with recorded.served() as server:
        page = visit.go(server.url)
        page.wait_for_selector("#entries button:has-text('live')")
        page.wait_for_selector("#clip:not([hidden])")
        visit.requests.clear()
        assert "snapshot" not in ask(visit, BANANA)
        page.wait_for_selector("#entries button:has-text('banana')")
        assert BANANA in page.inner_text("#entries button:has-text('banana')")
        assert not [url for url in visit.requests if "timeline" in url], "what happens is told, not asked for"
        assert page.query_selector("#entries img") is None
        wait_for(lambda: page.evaluate(FILLED))
        assert "questions" in page.inner_text("#legend")

        asked = time.time()
        # Once the disk has what came later, a still of the moment is the same each time.
        wait_for(lambda: keeper.clips.still("demo", time.time())[1] > asked)
        with page.expect_response("**/still?at=*") as sent:
            page.click("#entries button:has-text('banana')")
        assert sent.value.ok
        still = httpx.get(sent.value.url).content
        assert decode_image(still, 640).std() > 10
        shown = f"data:image/jpeg;base64,{b64encode(still).decode()}"
        wait_for(lambda: page.get_attribute("#picture", "src") == shown)
        then = page.inner_text("#moment")
        assert re.fullmatch(r"about .*\d\d:\d\d:\d\d", then)
        assert re.search(r"exact|nearest snapshot", ask(visit, "What was there?"))
        assert page.inner_text(".question:last-of-type small, .question:has-text('What was there?') small") == then
        page.click("#now")
        page.wait_for_selector("#then", state="hidden")

        page.fill("#search", "banana")
        wait_for(lambda: page.locator("#entries button").count() == 1)
        page.fill("#search", '"')
        page.wait_for_selector("#found:has-text('is not understood')")
        page.fill("#search", "")

        def moment() -> float:
            return float(page.get_attribute("#bar", "aria-valuenow") or 0)

        page.focus("#bar")
        for key in "----":
            page.keyboard.press(key)
        page.wait_for_selector("[data-span='21600'][aria-pressed=true]")
        for key in "++++":
            page.keyboard.press(key)
        page.wait_for_selector("[data-span='60'][aria-pressed=true]")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#then:not([hidden])")
        first = moment()
        page.keyboard.press("ArrowLeft")
        assert first - moment() == pytest.approx(1, abs=0.01)
        page.keyboard.press("PageDown")
        assert first - moment() == pytest.approx(16, abs=0.01)
        for _ in range(4):
            page.keyboard.press("PageDown")
        page.wait_for_selector("#span:not(:has-text('now'))")
        page.keyboard.press("Escape")
        page.wait_for_selector("#span:has-text('now')")
        page.wait_for_selector("#then", state="hidden")

        box = page.locator("#bar").bounding_box()
        assert box is not None
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.5, y)
        page.mouse.down()
        with page.expect_response("**/still?at=*"):
            page.mouse.move(box["x"] + box["width"] - 30, y, steps=4)
        page.mouse.up()
        dragged = moment()
        assert time.time() - dragged == pytest.approx(60 * 30 / box["width"], abs=3)
        page.click("#whole")
        assert " – " in page.inner_text("#moment")
        assert page.is_hidden("#play")
        page.keyboard.press("Tab")
        assert re.search(r"replayed", ask(visit, "What was there?"))
        page.click("#now")

        page.click("#entries button:has-text('banana')")
        page.click("#play")
        wait_for(lambda: page.evaluate("document.getElementById('clip-shown').currentTime") > 0.5)
        page.click("#now")
        page.wait_for_selector("#clip-shown", state="hidden")
        with page.expect_download() as saved:
            page.click("#clip")
        assert saved.value.suggested_filename.startswith("demo-")
        assert b"ftyp" in Path(saved.value.path()).read_bytes()[:16]


def test_a_disk_at_fault_is_shown_until_it_is_well(
    visit: Visit,  # noqa: F811
    recorded: Daemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeper = recorded.assistant.keeper
    assert keeper is not None
    with recorded.served() as server, monkeypatch.context() as full:
        full.setattr(type(keeper), "fault", "door.snapshot: No space left on device")
        page = visit.go(server.url)
        page.wait_for_selector("#storage:visible")
        assert "No space left on device" in page.inner_text("#storage")
        full.undo()
        page.wait_for_selector("#storage", state="hidden")
