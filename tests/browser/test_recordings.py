"""A video on the page: dropped, read while a bar shows it, asked by the nano, and its cited moment played."""

from pathlib import Path

import pytest

from capture.sources.demo import CLIP
from tests.browser.chromium import WAIT, chromium, needs_chromium
from tests.streamer.serving import Daemon, wait_for

pytestmark = [needs_chromium, pytest.mark.nightly]


def test_a_video_is_brought_read_asked_and_its_moment_played(tmp_path: Path) -> None:
    daemon = Daemon(model={"threads": 1}, storage={"folder": str(tmp_path / "state")})
    try:
        with daemon.served() as server, chromium() as browser:
            page = browser.new_page()
            page.set_default_timeout(WAIT)
            page.goto(server.url)
            page.wait_for_selector("#connection[data-state=open]")
            assert "drop one here" in page.inner_text("#no-recordings")
            page.set_input_files(
                "#video-file", {"name": "my clip.mp4", "mimeType": "video/mp4", "buffer": CLIP.read_bytes()}
            )
            page.wait_for_selector("#recording-list progress")
            page.wait_for_selector("#recording-list li[data-state=ready]")
            assert page.locator("#recording-list progress").count() == 0
            page.click("#recording-list .choose:has-text('my-clip')")
            assert page.inner_text("#moment") == "about my-clip"
            page.fill("#question", "Which number was shown?")
            page.keyboard.press("Enter")
            page.wait_for_selector(".answer .cited")
            assert page.inner_text(".answer").startswith("42") and "about my-clip" in page.inner_text(".question small")
            page.click(".answer .cited >> nth=0")
            wait_for(lambda: page.evaluate("document.querySelector('#player video').duration > 1"))
            page.click("#player button")
            page.screenshot(path=str(tmp_path / "page.png"))
            page.click("#now")
            assert page.is_hidden("#then")
            page.set_input_files(
                "#video-file", {"name": "list.m3u8", "mimeType": "video/mp4", "buffer": b"#EXTM3U\nhttp://x/\n"}
            )
            page.wait_for_selector("#notice:has-text('is no video')")
            page.click("[aria-label='remove my-clip']")
            page.wait_for_selector("#no-recordings:not([hidden])")
    finally:
        daemon.stop()
