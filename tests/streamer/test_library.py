"""Recordings through the daemon: brought over the wire, read beside a stream, asked on every wire, and refused in one line."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from capture.sources.demo import CLIP
from streamer.client import Client, ClientError
from streamer.config import parse_config
from streamer.indexing import file_video, index_video, load
from streamer.library import Library
from streamer.memory.indexes import Facts
from streamer.reading import Place
from tests.memory.test_indexes import film
from tests.streamer.serving import Daemon, Served, wait_for

QUESTION = "Which number was shown?"
FEW: dict[str, Any] = {"max_tokens": 3}
"""An untrained model talks until it is stopped."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def library(daemon: Daemon, state: Path) -> Iterator[Library]:
    """Of the usual daemon, which keeps nothing else."""
    assistant = daemon.assistant
    links = assistant.watches.links
    assistant.library = daemon.do(lambda: Library(assistant.engine, daemon.config, state, lambda: links))
    yield assistant.library
    daemon.run(assistant.library.stop)
    assistant.library = None


@pytest.fixture(scope="module")
def server(daemon: Daemon, library: Library) -> Iterator[Served]:
    with daemon.served() as server:
        yield server


def call(
    server: Served,
    path: str,
    body: bytes | Iterator[bytes] | None = None,
    kind: str = "",
    method: str = "",
    **headers: str,
) -> Any:
    """The JSON of an answer, and of a refusal its status and error."""
    sent = {"Content-Type": kind} if kind else {}
    method = method or ("GET" if body is None else "POST")
    request = urllib.request.Request(server.url + path, body, {**sent, **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            data = reply.read()
            return json.loads(data) if reply.headers.get_content_type() == "application/json" else data
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]


def post(server: Served, place: str, /, **fields: Any) -> Any:
    return call(server, place, json.dumps(fields).encode(), "application/json")


def view(server: Served, name: str) -> dict[str, Any]:
    found: dict[str, Any] = call(server, f"/v1/recordings/{name}")
    return found


@pytest.fixture(scope="module")
def clip(server: Served) -> str:
    """The demo's clip, brought as a file and read."""
    told = call(server, "/v1/recordings?name=my%20clip.mp4&fps=1", CLIP.read_bytes(), "video/mp4")
    assert (told["name"], told["source"], told["of"]) == ("my-clip", "video", pytest.approx(48, abs=0.2))
    assert told["state"] in ("waiting", "reading")
    code, error = post(
        server, "/v1/chat/completions", model="nano/my-clip", messages=[{"role": "user", "content": "?"}]
    )
    assert (code, error["code"]) == (503, "not_ready") and "is being read" in error["message"]
    wait_for(lambda: view(server, "my-clip")["state"] == "ready", 250)
    told = view(server, "my-clip")
    assert 47 < told["seconds"] <= 48.1 and told["frames"] == 49 and told["bytes"] > CLIP.stat().st_size
    return "my-clip"


def test_a_recording_is_asked_by_chat(server: Served, clip: str) -> None:
    assert f"nano/{clip}" in [each["id"] for each in call(server, "/v1/models")["data"]]
    messages = [{"role": "user", "content": QUESTION}]
    told = post(server, "/v1/chat/completions", model=f"nano/{clip}", messages=messages, **FEW)
    said = told["choices"][0]["message"]["content"]
    assert said and told["moment"]["recording"] == clip and 1 <= len(told["moment"]["moments"]) <= 3
    first = told["moment"]["moments"][0]
    assert 0 <= first["from"] < first["to"] <= 48.1
    with av.open(io.BytesIO(call(server, first["clip"]))) as film:  # a link, as the door has it
        seconds = len([frame for frame in film.decode(video=0)]) / 25
    assert seconds == pytest.approx(min(48, first["to"] + 2) - max(0, first["from"] - 1), abs=1.1)
    part = {"type": "video_url", "video_url": {"url": f"recording:{clip}"}}
    content = [part, {"type": "text", "text": QUESTION}]
    told = post(server, "/v1/chat/completions", model="nano", messages=[{"role": "user", "content": content}], **FEW)
    assert told["choices"][0]["message"]["content"] == said


def test_a_broadcasts_file_is_read_as_well(server: Served) -> None:
    """MPEG-TS, as recorders keep it, whose first bytes say little, even where they come alone."""
    file = io.BytesIO()
    with av.open(str(CLIP)) as source, av.open(file, "w", format="mpegts") as made:
        stream = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None and float(packet.pts * packet.time_base) < 4:
                packet.stream = stream
                made.mux(packet)

    def pieces() -> Iterator[bytes]:
        yield file.getvalue()[:100]
        time.sleep(0.3)
        yield file.getvalue()[100:]

    told = call(server, "/v1/recordings?name=tape.ts&fps=1", pieces(), "video/mp2t")
    wait_for(lambda: view(server, told["name"])["state"] in ("ready", "failed"), 250)
    assert view(server, told["name"])["state"] == "ready" and view(server, told["name"])["frames"] in (4, 5)


def test_a_recording_is_asked_on_the_other_wires(server: Served, clip: str) -> None:
    told = post(server, "/v1/responses", model=f"nano/{clip}", input=QUESTION, max_output_tokens=3)
    said = told["output"][0]["content"][0]["text"]
    assert told["moment"]["moments"]
    moments: list[dict[str, Any]] = []
    with Client(server.url) as client:
        assert "".join(client.ask(QUESTION, recording=clip, moment=moments.append, max_tokens=3)) == said
        assert moments[-1]["recording"] == clip and moments[-1]["moments"]
        assert clip in [each["name"] for each in client.recordings()]


def test_what_was_indexed_without_the_daemon_is_asked_too(server: Served, state: Path, tmp_path: Path) -> None:
    """By the same weights in a runner of their own; and gone on every wire once it is removed."""
    runner = load(parse_config({"model": {"random_weights": True}}))

    def told(facts: Facts) -> None:
        """Nobody listens."""

    index_video(Place(runner), state, file_video(state, str(film(tmp_path / "beside.mkv"))), 2.0, 10**9, told)
    asked = {"model": "nano/beside", "messages": [{"role": "user", "content": "What do you see?"}], **FEW}
    assert post(server, "/v1/chat/completions", **asked)["moment"]["recording"] == "beside"
    call(server, "/v1/recordings/beside", method="DELETE")
    code, error = post(server, "/v1/chat/completions", **asked)
    assert (code, error["code"]) == (404, "model_not_found")


def test_streams_go_on_while_a_recording_is_read(server: Served, daemon: Daemon, tmp_path: Path) -> None:
    def seen() -> int:
        return int(daemon.do(lambda: daemon.assistant.streams()[0].frames_seen))

    before, path = seen(), film(tmp_path / "long.mkv", seconds=12)
    name = post(server, "/v1/recordings", path=str(path), fps=4)["name"]
    wait_for(lambda: view(server, name)["state"] == "ready", 250)
    wait_for(lambda: seen() > before)
    assert post(server, "/v1/recordings", path=str(path), fps=4)["name"] == name  # is read already
    wait_for(lambda: view(server, name)["state"] == "ready", 250)
    moments: list[dict[str, Any]] = []
    with Client(server.url) as client:
        assert "".join(client.ask(QUESTION, recording=name, moment=moments.append, max_tokens=3))
        assert moments[-1]["moments"]
        client.remove_recording(name)


def test_what_is_refused(server: Served, library: Library, clip: str, tmp_path: Path) -> None:
    playlist = b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1/secret\n"
    assert call(server, "/v1/recordings", playlist, "video/mp4")[0] == 415
    _, error = call(server, "/v1/recordings?name=some.mp4", b"\0\0\0\x18ftypisom" + bytes(99), "video/mp4")
    assert error["code"] == "bad_recording"
    assert error["message"] == "some: it is no video that can be decoded."  # not where it was kept
    path = str(film(tmp_path / "here.mkv", seconds=1))
    away = call(server, "/v1/recordings", json.dumps({"path": path}).encode(), "application/json", Via="1.1 proxy")
    assert away[0] == 403 and "send the file itself" in away[1]["message"]
    for asked, code in (
        ({"path": "/none"}, "bad_recording"),
        ({"stream": "demo", "from": "1 hour ago"}, "bad_recording"),
        ({"stream": "demo", "from": "now", "to": "1 hour ago"}, "bad_span"),
        ({"stream": "demo"}, "missing_required_parameter"),
        ({"path": path, "fps": -1}, "bad_option"),
    ):
        assert post(server, "/v1/recordings", **asked)[1]["code"] == code, asked
    with pytest.raises(Exception, match="There is no recording 'none'"), Client(server.url) as client:
        list(client.ask(QUESTION, recording="none"))
    assert call(server, "/v1/recordings/none", method="DELETE")[0] == 404
    code, error = call(server, f"/v1/recordings/{clip}/clip?from=100&to=110")
    assert error["code"] == "bad_span" and "the recording has 48 s" in error["message"]
    budget, library.budget = library.budget, 1_000
    assert call(server, "/v1/recordings", CLIP.read_bytes()[:16_000], "video/mp4")[0] == 413
    large = tmp_path / "large.mp4"
    large.write_bytes(CLIP.read_bytes() + bytes(2**24))  # refused while it is sent
    with pytest.raises(ClientError, match="remove a recording") as refused, Client(server.url) as client:
        client.index(large)
    assert refused.value.code == "payload_too_large"
    library.budget = budget
    library.folder, folder = tmp_path / "file", library.folder
    library.folder.write_text("no folder")
    name = post(server, "/v1/recordings", path=path)["name"]
    wait_for(lambda: view(server, name)["state"] == "broken off", 250)
    assert "Not a directory: what was kept before it is still there" in view(server, name)["note"]
    assert call(server, f"/v1/recordings/{name}", method="DELETE") == b""
    library.folder = folder
    assert not [each for each in (library.folder / "indexes").iterdir() if each.name.startswith("recording")]
