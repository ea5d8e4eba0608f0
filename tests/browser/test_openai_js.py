"""The official openai SDK for JavaScript, unmodified, in a page of another origin in a real Chromium."""

import functools
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import CHROMIUM, WAIT, chromium
from tests.streamer.serving import Daemon

NPM = shutil.which("npm")
HOME = Path(__file__).parents[2] / ".openai-js"
PACKAGE = "openai@6"
ASK = """async ([url]) => {
  const { default: OpenAI } = await import("/package/index.mjs");
  const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", dangerouslyAllowBrowser: true, maxRetries: 0 });
  const answered = async () => {
    const asked = { model: "nano", max_tokens: 2, messages: [{ role: "user", content: "What is there?" }] };
    const whole = await client.chat.completions.create(asked);
    return whole.choices[0].message.content;
  };
  const responded = async () => {
    const kinds = [];
    const events = await client.responses.create({ model: "nano", input: "What?", max_output_tokens: 2, stream: true });
    for await (const event of events) kinds.push(event.type);
    return kinds;
  };
  const spoken = (module, limit) => new Promise(async (done, failed) => {
    const { OpenAIRealtimeWebSocket } = await import(module);
    const onURL = (address) => { address.protocol = "ws"; };
    const socket = new OpenAIRealtimeWebSocket({ model: "nano", onURL }, client);
    const kinds = [];
    socket.on("error", failed);
    socket.on("event", ({ type }) => {
      kinds.push(type);
      if (type === "session.created") {
        const content = [{ type: "input_text", text: "What?" }];
        socket.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
        socket.send({ type: "response.create", response: { [limit]: 2 } });
      }
      if (type === "response.done") { socket.close(); done(kinds); }
    });
  });
  const tried = (what) => what().catch((error) => error.constructor.name);
  return {
    answered: await tried(answered),
    responded: await tried(responded),
    spoken: await tried(() => spoken("/package/realtime/websocket.mjs", "max_output_tokens")),
    beta: await tried(() => spoken("/package/beta/realtime/websocket.mjs", "max_response_output_tokens")),
  };
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None or NPM is None, reason="needs chromium and npm")


class Quiet(SimpleHTTPRequestHandler):
    def guess_type(self, path: Any) -> str:
        """Node's modules are served as scripts."""
        return "text/javascript" if str(path).endswith(".mjs") else super().guess_type(path)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """A site with the SDK on it, which is fetched once and kept."""
    if not (HOME / "package" / "index.mjs").exists():
        assert NPM is not None
        HOME.mkdir(exist_ok=True)
        packed = subprocess.run(
            [NPM, "pack", PACKAGE, "--silent"], cwd=HOME, capture_output=True, text=True, timeout=200, check=False
        )
        if packed.returncode:
            pytest.skip(f"{PACKAGE} can't be fetched: {packed.stderr.strip()[-200:]}")
        with tarfile.open(HOME / packed.stdout.split()[-1]) as archive:
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 brought it
            archive.extractall(HOME, **safe)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HOME)) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_address[1]}"
        site.shutdown()


def test_the_sdk_speaks_from_an_allowed_origin_and_no_other(daemon: Daemon, elsewhere: str) -> None:
    other = elsewhere.replace("127.0.0.1", "localhost")
    with daemon.served(server={"origins": [elsewhere]}) as server, chromium() as browser:
        for origin, allowed in ((elsewhere, True), (other, False)):
            page = browser.new_page()
            page.set_default_timeout(WAIT)
            page.goto(f"{origin}/package/")
            told = page.evaluate(ASK, [server.url])
            if allowed:
                assert told["answered"] and told["responded"][0] == "response.created", told
                assert told["responded"][-1] in ("response.completed", "response.incomplete")
                assert "response.output_text.delta" in told["spoken"] and "response.text.delta" in told["beta"], told
            else:
                assert told == {
                    "answered": "APIConnectionError",
                    "responded": "APIConnectionError",
                    "spoken": "OpenAIRealtimeError",
                    "beta": "OpenAIRealtimeError",
                }
