"""Recordings through the daemon: brought over the wire, read beside a stream, asked on every wire, and refused in one line."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from capture.sources.demo import CLIP
from streamer.client import Client, ClientError
from streamer.config import parse_config
from streamer.errors import AssistantError
from streamer.indexing import file_video, index_video, load
from streamer.library import Library
from streamer.memory.indexes import KIND, TOKENS, Facts, Index
from streamer.reading import Place
from streamer.shelf import line
from tests.memory.test_indexes import film
from tests.streamer.serving import Daemon, Served, wait_for

QUESTION = "Which number was shown?"
FEW: dict[str, Any] = {"max_tokens": 3}
"""An untrained model talks until it is stopped."""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("library")


def made(daemon: Daemon, folder: Path) -> Library:
    assistant = daemon.assistant
    return Library(assistant.engine, daemon.config, folder, lambda: assistant.watches.links, lambda: assistant.names)


@pytest.fixture(scope="module")
def library(daemon: Daemon, state: Path) -> Iterator[Library]:
    """Of the usual daemon, which keeps nothing else."""
    assistant = daemon.assistant
    assistant.library = daemon.do(lambda: made(daemon, state))
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
    assert told["state"] in ("waiting", "reading") and told["bytes"] >= CLIP.stat().st_size
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


def test_what_was_indexed_without_the_daemon_is_asked_too(
    server: Served, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same weights in a runner of their own; and gone on every wire once it is removed."""
    runner = load(parse_config({"model": {"random_weights": True}}))

    def told(facts: Facts) -> None:
        """Nobody listens."""

    index_video(Place(runner), state, file_video(state, str(film(tmp_path / "beside.mkv"))), 2.0, 10**9, told)
    asked = {"model": "nano/beside", "messages": [{"role": "user", "content": "What do you see?"}], **FEW}
    tokens, aside = state / KIND / "beside" / TOKENS, tmp_path / "aside"
    tokens.rename(aside)
    tokens.mkdir()
    _, error = post(server, "/v1/chat/completions", **asked)
    why = "Recording 'beside' can't be read from the disk (Is a directory): look at the state folder"
    assert error["message"] == why  # which names no path
    tokens.rmdir()
    aside.rename(tokens)
    assert post(server, "/v1/chat/completions", **asked)["moment"]["recording"] == "beside"
    of = Library.of
    with monkeypatch.context() as patch:  # its writer has gone on since it was looked up
        patch.setattr(Library, "of", lambda self, name: replace(of(self, name), tokens=of(self, name).tokens - 64))
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
    # Not where it was kept, nor the name that it had there.
    told = "some.mp4: it is no video that can be decoded. It may be incomplete: 111 bytes came."
    assert error["message"] == told
    _, error = call(server, "/v1/recordings", b"\0\0\0\x18ftypisom" + bytes(99), "video/mp4")
    assert error["message"].startswith("the video: it is no video")
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
    for named, why in (
        ("a\0b", r"'a\x00b' is no path that a file can have: name another."),
        ("~nobody-of-that-name/a", "'~nobody-of-that-name/a' is no path that a file can have: name another."),
        ("none.mp4", "none.mp4: there is no such file in the daemon's working folder: name it by its whole path."),
        ("/none.mp4", "/none.mp4: there is no such file."),
        ("a" * 300, f"{'a' * 200}: it can't be read (File name too long): name another."),
    ):
        status, error = post(server, "/v1/recordings", path=named)
        assert (status, error["code"], error["message"]) == (400, "bad_recording", why)
    status, error = post(server, "/v1/recordings", path=5)
    assert (status, error["code"], error["message"]) == (400, "invalid_value", "path must be a text, not '5'.")
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
    whole, torn = film(tmp_path / "whole.mkv").read_bytes(), tmp_path / "blank.mkv"
    torn.write_bytes(whole[: whole.index(b"\x1fC\xb6u") + 20])  # amid the first cluster's head
    blank = post(server, "/v1/recordings", path=str(torn))["name"]
    wait_for(lambda: view(server, blank)["state"] == "broken off", 250)
    assert view(server, blank)["note"] == "blank: it holds no picture that can be decoded, or none yet"
    assert call(server, f"/v1/recordings/{blank}", method="DELETE") == b""
    library.folder, folder = tmp_path / "file", library.folder
    library.folder.write_text("no folder")
    status, error = call(server, "/v1/recordings", CLIP.read_bytes()[:16_000], "video/mp4")
    assert (status, error["message"]) == (503, "The file can't be kept: Not a directory.")
    name = post(server, "/v1/recordings", path=path)["name"]
    wait_for(lambda: view(server, name)["state"] == "broken off", 250)
    assert "Not a directory" in view(server, name)["note"]
    assert call(server, f"/v1/recordings/{name}", method="DELETE") == b""
    library.folder = folder
    assert not [each for each in (library.folder / "indexes").iterdir() if each.name.startswith("recording")]


def test_a_recording_takes_no_streams_name(server: Served, tmp_path: Path) -> None:
    """The model of that name is the stream."""
    path = film(tmp_path / "demo.mkv", seconds=2)
    brought = call(server, "/v1/recordings?name=demo.mkv", path.read_bytes(), "video/x-matroska")["name"]
    named = post(server, "/v1/recordings", path=str(path))["name"]
    assert (brought, named) == ("demo-2", "demo-3")
    for name in (brought, named):
        wait_for(lambda name=name: view(server, name)["state"] == "ready", 250)  # type: ignore[misc]
    assert post(server, "/v1/recordings", path=str(path))["name"] == named  # its own
    wait_for(lambda: view(server, named)["state"] == "ready", 250)
    asked = {"messages": [{"role": "user", "content": QUESTION}], **FEW}
    assert post(server, "/v1/chat/completions", model=f"nano/{brought}", **asked)["moment"]["recording"] == brought
    for name in (brought, named):
        call(server, f"/v1/recordings/{name}", method="DELETE")


def test_no_clip_is_made_of_a_file_that_has_changed(server: Served, tmp_path: Path) -> None:
    path = film(tmp_path / "replaced.mkv", seconds=2)
    name = post(server, "/v1/recordings", path=str(path))["name"]
    wait_for(lambda: view(server, name)["state"] == "ready", 250)
    clip = f"/v1/recordings/{name}/clip?from=0&to=1"
    assert call(server, clip)[4:8] == b"ftyp"
    film(path, seconds=3)
    status, error = call(server, clip)
    assert (status, error["code"]) == (409, "recording_changed")
    assert error["message"] == "replaced has changed since it was indexed: index it again."
    path.unlink()
    assert call(server, clip)[1]["code"] == "no_recording"
    call(server, f"/v1/recordings/{name}", method="DELETE")


def test_what_ffmpeg_says_is_told_without_the_path(tmp_path: Path) -> None:
    (tmp_path / "some.mp4").write_bytes(b"nothing")
    with pytest.raises(av.error.FFmpegError, match=r"some\.mp4") as error:
        av.open(str(tmp_path / "some.mp4"))
    assert line(error.value) == "Invalid data found when processing input"


def test_the_end_waits_for_what_is_being_read(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the engine, as what was read is kept, and listed by the next daemon; and for no longer than it is given."""

    def reading(folder: Path) -> tuple[Library, str]:
        library = daemon.do(lambda: made(daemon, folder))
        name = daemon.run(lambda: library.read_file(CLIP, 25.0))
        assert daemon.run(lambda: library.read_file(film(tmp_path / "next.mkv", seconds=1))) == "next"
        wait_for(lambda: {each["name"]: each for each in library.all()}[name]["seconds"] > 0)
        return library, name

    def hold(seconds: float) -> threading.Event:
        """Keeps the engine from all else until it is let go."""
        held, go = threading.Event(), threading.Event()
        daemon.assistant.engine.call(lambda: (held.set(), go.wait(seconds)))
        assert held.wait(30)
        return go

    library, name = reading(tmp_path / "state")
    hold(1.0)
    daemon.run(library.stop)
    index = Index(tmp_path / "state" / KIND / name)
    index.open()  # which nobody writes any more
    index.close()
    (after,) = daemon.do(lambda: made(daemon, tmp_path / "state")).all()
    assert (after["name"], after["state"]) == (name, "broken off") and 0 < after["seconds"] < 48
    with pytest.raises(AssistantError, match="the daemon is shutting down"):
        daemon.run(lambda: library.read_file(CLIP))

    library, _ = reading(tmp_path / "other")
    monkeypatch.setattr("streamer.library.STOP_SECONDS", 0.3)
    go = hold(30.0)
    began = time.monotonic()
    daemon.run(library.stop)
    assert time.monotonic() - began < 5
    go.set()
