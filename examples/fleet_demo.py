"""A fleet on this machine: a head and three engines watch 30 files, and one engine is killed while a client asks.

Open the page that it names: the streams that the dead engine had are seen to go to the others. Ctrl-C ends it.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import av
import yaml

from streamer.client import Client

STREAMS, ENGINES = 30, 3
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")


def film(file: Path, number: int) -> None:
    """Ten minutes of one colour at a frame every two seconds."""
    from PIL import Image

    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 320, 192, "yuv420p"
        picture = Image.new("RGB", (320, 192), COLOURS[number % len(COLOURS)])
        for _ in range(600):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def get(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/v1/fleet", timeout=5) as reply:
        return json.load(reply)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="streamer-fleet-"))
    (folder / "secret").write_text(secrets.token_hex(32))
    for number in range(len(COLOURS)):
        film(folder / f"{number}.mp4", number)
    names = [f"camera-{number:02d}" for number in range(STREAMS)]
    config = {
        "server": {"port": int(os.environ.get("PORT", "8765"))},
        "secret_file": str(folder / "secret"),
        "folder": str(folder / "shared"),
        "engines": [{"name": "cpu", "count": ENGINES}],
        "engine": {
            "model": {"threads": 1},
            "limits": {"streams": 20, "answers": 2},
            "answers": {"floor_tokens_per_second": 1},
        },
        "streams": [
            {"name": name, "source": str(folder / f"{number % len(COLOURS)}.mp4"), "loop": True, "fps": 0.1}
            for number, name in enumerate(names)
        ],
    }
    (folder / "fleet.yaml").write_text(yaml.safe_dump(config))
    env = os.environ | {"XDG_STATE_HOME": str(folder / "state")}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "streamer.cli.main", "fleet", "--config", str(folder / "fleet.yaml")],
            env=env,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{config['server']['port']}"
    try:
        show(url, names, head, folder)
        if "--stay" in sys.argv:
            head.wait()
    except KeyboardInterrupt:
        pass
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(20)


def show(url: str, names: list[str], head: subprocess.Popen, folder: Path) -> None:
    print(f"three engines load their models; the page is {url}, the log {folder / 'log'}", flush=True)
    while True:
        if head.poll() is not None:
            sys.exit(f"the head ended: see {folder / 'log'}")
        try:
            view = get(url)
        except OSError:
            view = {"streams": [], "engines": []}
        if (
            sum(each["state"] == "owned" for each in view["streams"]) == len(names)
            and sum(e["state"] == "up" for e in view["engines"]) == ENGINES
        ):
            break
        time.sleep(0.5)
    for number, name in enumerate(names):  # as many on each: by itself the fleet fills one after the other
        told = json.dumps({"stream": name, "engine": f"cpu-{number % ENGINES}"}).encode()
        request = urllib.request.Request(f"{url}/v1/fleet/move", told, {"Content-Type": "application/json"})
        with suppress(OSError):  # it is there already
            urllib.request.urlopen(request, timeout=10).close()
    time.sleep(12)
    view = get(url)
    print(
        "\n".join(f"{e['name']}: {e['streams']} streams, {e['load']:.0%} of its time" for e in view["engines"]),
        flush=True,
    )
    asked = next(each["name"] for each in view["streams"] if each["engine"] == "cpu-1")
    victim = next(each["pid"] for each in view["engines"] if each["name"] == "cpu-1")
    words: list[str] = []

    def ask() -> None:
        with Client(url) as client:
            words.extend(client.ask("What color is it?", stream=asked))

    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    asking = threading.Thread(target=ask)
    asking.start()
    print(f"cpu-1 is killed, and {asked}, which it had, is asked what it sees", flush=True)
    asking.join(30)
    print(f"> {''.join(words).strip()}   (after {time.monotonic() - began:.1f} s)", flush=True)
    while sum(each["state"] == "owned" for each in get(url)["streams"]) < len(names):
        time.sleep(0.05)
    moved = [each for each in get(url)["moved"] if each["from"] == "cpu-1" and each["to"] != "cpu-1"]
    print(
        f"all {len(names)} streams are watched again {time.monotonic() - began:.1f} s after it was killed", flush=True
    )
    for each in moved[-3:]:
        print(
            f"  {each['stream']}: cpu-1 → {each['to']}, unseen for {each['unseen_s']:.1f} s, its memory {each['memory']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
