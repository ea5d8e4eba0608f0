"""Timelines, clips, watches and outputs: greedy, slow and odd clients of theirs, and those whose token is taken away."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from streamer.memory import clips
from streamer.memory.store import Store
from streamer.memory.timeline import Timeline
from streamer.server import bodies, connections, recordings
from streamer.server import timeline as timelines
from streamer.server.auth import new_token, read_tokens, token_digest
from streamer.watches import watches
from tests.streamer.serving import CONFIG, Daemon, Served, receive, send, until, wait_for

ADA, BOB = new_token(), new_token()
TOKENS = [
    {"name": name, "scopes": ["admin"], "digest": f"sha256:{token_digest(token)}"}
    for name, token in (("ada", ADA), ("bob", BOB))
]
CLIP = "/v1/streams/demo/clip?from=10%20minutes%20ago"


class Recorded:
    """A keeper with a clip of every span, which is made as slowly as `making` says, and comes as it is made or whole."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.making = path, threading.Event()
        self.making.set()
        self.made: list[str] = []
        self.recordings: Any = self
        self.clips: Any = self
        self.folder: Any = None
        self.fault = None

    def of(self, stream: str, *span: float) -> list[str]:
        return ["a segment"] if stream == "demo" else []

    def clip(self, stream: str, since: float, until: float, *, encoded: bool) -> Any:
        assert self.making.wait(60)
        self.made.append("clip")
        return SimpleNamespace(clip=SimpleNamespace(begins=since, ends=until), path=self.path)

    def still(self, stream: str, at: float) -> tuple[bytes, float]:
        self.made.append("still")
        return b"jpeg", at


@pytest.fixture
def recorded(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Recorded]:
    keeper = Recorded()
    monkeypatch.setattr(daemon.assistant, "keeper", keeper)

    def endless(clip: Any) -> Iterator[bytes]:
        while True:
            yield b"x" * 65_536
            time.sleep(0.001)

    monkeypatch.setattr(recordings, "streamed", endless)
    yield keeper
    keeper.making.set()


def get(server: Served, path: str, token: str = ADA) -> httpx.Response:
    return httpx.get(server.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def unread(server: Served, path: str, token: str = ADA) -> socket.socket:
    """A client that asks and never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return client


@pytest.mark.parametrize("path", ["/v1/events", CLIP, "/v1/streams/demo/video.mjpeg"])
@pytest.mark.parametrize("reads", [True, False])
def test_what_a_token_opened_ends_with_it(
    daemon: Daemon, recorded: Recorded, path: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "LOOK_SECONDS", 0.1)
    with daemon.served(server={"tokens": TOKENS}) as server:
        routes = server.app.state.routes
        client = unread(server, path)
        if reads:
            threading.Thread(target=read_all, args=(client,), daemon=True).start()
        wait_for(lambda: routes.limits._connected["ada"] == 1)
        daemon.do(lambda: routes.gate.renew(read_tokens([f"bob admin {BOB}"], "test"), [], None))
        wait_for(lambda: not routes.limits._connected["ada"], 10)
        assert server.app.state.held.bytes == 0
        assert get(server, path).status_code == 401
        client.close()


def read_all(client: socket.socket) -> None:
    try:
        while client.recv(65_536):
            pass
    except OSError:
        pass


def test_whoever_takes_nothing_of_an_answer_is_cut_and_all_of_them_hold_little(
    daemon: Daemon, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SEND_SECONDS", 2.0)  # within which a busy machine sees that something is held
    with daemon.served(server={"tokens": TOKENS}) as server:
        held, crowd = server.app.state.held, server.app.state.crowd
        client = unread(server, CLIP)
        wait_for(lambda: held.bytes)
        wait_for(lambda: not len(crowd))
        assert held.bytes == 0
        monkeypatch.setattr(connections, "SEND_SECONDS", 600.0)
        held.most = 400_000  # of which one address has half: two such clients fit
        clients = [unread(server, CLIP) for _ in range(4)]
        wait_for(lambda: len(crowd) == len(crowd) <= 2 and held.bytes)
        assert held.bytes <= 200_000
        for each in (client, *clients):
            each.close()
        wait_for(lambda: not len(crowd) and not held.bytes)


def test_clips_are_made_in_turn_for_those_who_are_still_there(daemon: Daemon, recorded: Recorded) -> None:
    recorded.making.clear()
    with daemon.served(server={"tokens": TOKENS}) as server, ThreadPoolExecutor(8) as clients:
        waiting = server.app.state.routes.footage.clips.waiting
        gone = [unread(server, CLIP, BOB) for _ in range(4)]
        wait_for(lambda: waiting["bob"] == 4)
        refused = get(server, CLIP, BOB)
        assert refused.status_code == 429 and "4 clips of yours" in refused.text
        for each in gone:
            each.close()
        still = get(server, "/v1/streams/demo/still?at=now")
        assert still.status_code == 200, "a still waits for no clip"
        other = clients.submit(httpx.head, server.url + CLIP, headers={"Authorization": f"Bearer {ADA}"}, timeout=60)
        wait_for(lambda: waiting["ada"] == 1 and len(server.app.state.crowd) == 1)
        recorded.making.set()
        assert other.result(60).status_code == 200
        assert recorded.made == ["still", "clip", "clip"], "nothing is made for those who have gone while they waited"
        assert not waiting


def test_recorded_pictures_are_for_no_other_page(daemon: Daemon, recorded: Recorded, tmp_path: Path) -> None:
    recorded.path = tmp_path / "clip.mp4"
    recorded.path.write_bytes(b"mp4")
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    with daemon.served() as server, httpx.Client(base_url=server.url, timeout=60) as client:
        for path in (CLIP, "/v1/streams/demo/still?at=now"):
            assert client.get(path).headers["cross-origin-resource-policy"] == "same-origin"
            assert client.get(path, headers=image).status_code == 403
        part = client.get(CLIP, headers={"Range": "bytes=1-1"})
        assert (part.status_code, part.content) == (206, b"p"), "a browser seeks in it all the same"


@pytest.fixture
def timeline(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Timeline]:
    store = Store(tmp_path / "state")
    timeline = Timeline(store, 10**9, 10**5)
    timeline.open("demo")
    keeper = SimpleNamespace(timeline=timeline, recordings=SimpleNamespace(spans=lambda *span: []), fault=None)
    monkeypatch.setattr(daemon.assistant, "keeper", keeper)
    yield timeline
    store.close()


def test_a_timeline_is_told_in_parts_that_hold_little(server: Served, timeline: Timeline) -> None:
    for number in range(400):
        timeline.add("note", "demo", f"{number} " + "x" * 8_000, {"more": "y" * 8_000})
    timeline._store.write("DELETE FROM entries WHERE FALSE", now=True).result(60)
    seen, before = [], ""
    while True:
        told = httpx.get(f"{server.url}/v1/streams/demo/timeline?limit=1000{before}", timeout=60)
        assert len(told.content) < 1.2 * timelines.MOST_CHARACTERS
        entries = told.json()["entries"]
        seen += [entry["text"].split()[0] for entry in entries]
        before = f"&before={entries[-1]['id']}"
        if not told.json()["more"]:
            break
    assert seen == [str(number) for number in reversed(range(400))]


def test_searches_take_turns(daemon: Daemon, timeline: Timeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may take half a second of a hundred thousand entries: they must not take all threads from others."""
    go, at_once, most = threading.Event(), [0], [0]

    def slowly(*_: object) -> dict[str, list[int]]:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        assert go.wait(60)
        at_once[0] -= 1
        return {}

    monkeypatch.setattr(timeline, "density", slowly)
    density = "/v1/streams/demo/timeline/density"
    with daemon.served(server={"tokens": TOKENS}) as server, ThreadPoolExecutor(9) as clients:
        waiting = server.app.state.routes.timelines.searches.waiting
        replies = [clients.submit(get, server, density) for _ in range(8)]
        wait_for(lambda: waiting["ada"] == 8)
        assert get(server, density).status_code == 429
        reply = clients.submit(get, server, density, BOB)
        go.set()
        assert {each.result(60).status_code for each in (*replies, reply)} == {200} and most[0] <= 2
        assert not waiting


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (f"/{'9' * 5_000}.jpg", "an entry's id is a number"),
        ("/x.jpg", "an entry's id is a number"),
        (f"?kind={',' * 60_000}", "kind may name 16 kinds"),
        (f"/density?kind={',' * 60_000}", "kind may name 16 kinds"),
        ("?limit=%D9%A1", "limit is a number"),
        (f"?search={'a' * 300}", "256 are the most"),
    ],
)
def test_what_no_timeline_understands_is_the_clients_mistake(
    server: Served, timeline: Timeline, path: str, told: str
) -> None:
    reply = httpx.get(f"{server.url}/v1/streams/demo/timeline{path}", timeout=60)
    assert reply.status_code == 400 and told in reply.json()["error"]["message"]


def test_a_long_head_is_answered_alike_in_pieces(server: Served, timeline: Timeline) -> None:
    line = f"GET /v1/streams/demo/timeline?kind={',' * 60_000} HTTP/1.1\r\n"
    head = f"{line}Host: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as peer:
        for begin in range(0, len(head), 25_000):
            peer.sendall(head[begin : begin + 25_000])
            time.sleep(0.05)
        reply = b"".join(iter(lambda: peer.recv(65_536), b""))
    assert reply.startswith(b"HTTP/1.1 400") and b"kind may name 16 kinds" in reply


WATCH = {"name": "odd", "question": "Is there a circle?"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/watches", {**WATCH, "self": 1}, 400),
        ("POST", "/v1/streams", {"name": "odd", "source": "demo:", "self": 1}, 400),
        ("POST", "/v1/outputs", {"name": "odd", "url": "https://127.0.0.1:1/", "self": 1}, 400),
        ("POST", "/v1/outputs", {"name": "odd", "url": "https://127.0.0.1:1/" + "a" * 70_000}, 400),
        ("POST", "/v1/outputs", {"name": "odd", "url": "https://xn--\u2603.example/"}, 400),
        ("POST", "/v1/outputs", {"name": "odd", "url": "https://127.0.0.1:1/", "secret": "\ud800" * 9}, 400),
        ("PATCH", "/v1/watches/odd", {"\ud800": 1}, 400),
        ("PATCH", "/v1/watches/odd", {"snooze": 10**400}, 400),
        ("PATCH", "/v1/watches/odd", {"snooze": float("inf")}, 400),
        ("POST", "/v1/watches", {**WATCH, "name": "events"}, 400),
        ("POST", "/v1/watches", {**WATCH, "stream": "x" * 100_000}, 404),
        ("POST", "/v1/watches", {**WATCH, "streams": ["demo"] * 19_000}, 400),
        ("POST", "/v1/watches", {**WATCH, "quiet": [5]}, 400),
        ("POST", "/v1/watches", {**WATCH, "question": "Is \ud800?"}, 400),
        ("POST", "/v1/watches", {**WATCH, "name": "odd-2", "when": "changes", "format": {"type": "nope"}}, 400),
        ("POST", "/v1/watches/events/event_0/feedback", {"feedback": [1]}, 400),
        ("POST", "/v1/watches", {**WATCH, **{f"k{number}": 1 for number in range(9_000)}}, 400),
        ("POST", "/v1/streams", {"name": "o", "source": "demo:", **{f"k{number}": 1 for number in range(9_000)}}, 400),
    ],
)
def test_what_is_odd_is_refused_in_a_moment_and_a_line(
    server: Served, watched: str, method: str, path: str, body: dict[str, Any], status: int
) -> None:
    reply = httpx.request(method, server.url + path, content=json.dumps(body), timeout=60)
    assert reply.status_code == status, reply.text[:300]
    assert len(reply.content) < 20_000


@pytest.mark.parametrize("options", [{"self": 1}, {"name": "x"}, {"source": "file:///etc/passwd"}])
def test_options_of_a_stream_are_no_arguments_of_ours(server: Served, options: dict[str, Any]) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await receive(client)
            await send(client, "stream.attach", stream="odd", source="demo:", options=options)
            assert (await until(client, "error"))[-1]["error"]["code"] == "bad_option"
            await send(client, "stream.list")
            await until(client, "stream.listed")

    asyncio.run(story())


def test_no_room_for_a_clip_is_a_line_and_a_503(
    server: Served,
    recorded: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    segment = SimpleNamespace(segment=SimpleNamespace(path="x", ends=0.0))
    clip = SimpleNamespace(size=1, run=[segment], first=0, ends=1.0, begins=0.0, encoded=False)
    monkeypatch.setattr(clips, "find_clip", lambda *_: clip)
    monkeypatch.setattr(clips, "write_copy", full)
    recorded.folder = SimpleNamespace(path=tmp_path)
    recorded.clips = clips.Clips(recorded)  # type: ignore[arg-type]
    reply = httpx.get(server.url + CLIP, timeout=60)
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "no_storage" and reply.headers["retry-after"]
    (line,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "make room there" in line.getMessage() and not line.exc_info


@pytest.fixture
def watched(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A watch; the model's answers, which is untrained here, are for another test."""

    async def answers(*_: Any) -> None: ...

    monkeypatch.setattr(watches, "admit", answers)
    original = watches.try_out

    async def tried(engine: Any, config: Any, *rest: Any) -> None:
        if config.when == "changes":
            await original(engine, config, *rest)

    monkeypatch.setattr(watches, "try_out", tried)
    daemon.run(lambda: daemon.assistant.watches.add("odd", "Is there a circle?", ["demo"]))
    yield "odd"
    for each in daemon.do(lambda: list(daemon.assistant.watches._configs)):
        daemon.run(lambda each=each: daemon.assistant.watches.remove(each))


def test_watches_have_a_number_and_a_name_is_given_once(
    server: Served, daemon: Daemon, watched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "MOST_MADE", 5)

    async def slowly(*_: Any) -> None:
        await asyncio.sleep(0.2)

    monkeypatch.setattr(watches, "try_out", slowly)

    def add(name: str) -> int:
        body = {"name": name, "question": "Is there a circle?", "every": 80_000}
        return httpx.post(f"{server.url}/v1/watches", json=body, timeout=60).status_code

    with ThreadPoolExecutor(6) as clients:
        assert sorted(clients.map(add, ["same"] * 6)) == [201, *[409] * 5]
        assert sorted(clients.map(add, [f"w{number}" for number in range(6)])) == [*[201] * 3, *[429] * 3]


def test_telling_outputs_of_a_thousand_watches_takes_a_moment(daemon: Daemon, watched: str) -> None:
    """It is done whenever one of them believes otherwise."""
    there = daemon.assistant.watches
    config = there._configs[watched]

    def add() -> float:
        for number in range(1_000):
            name = f"many-{number}"
            there._configs[name] = config.model_copy(update={"name": name})
            there._posts[name, "demo"] = there._posts[watched, "demo"]
        began = time.thread_time()
        assert len(there.standing()) == 1_001
        took = time.thread_time() - began
        for number in range(1_000):
            del there._configs[f"many-{number}"], there._posts[f"many-{number}", "demo"]
        return took

    assert min(daemon.do(add) for _ in range(3)) < 0.1


def test_watches_that_want_words_leave_answers_to_people(daemon: Daemon, server: Served, watched: str) -> None:
    there = daemon.assistant.watches
    for number in range(12):
        daemon.run(lambda number=number: there.add(f"words-{number}", "What?", ["demo"], when="changes", every=0.05))
    wait_for(lambda: daemon.open_answers)
    most = 0
    for _ in range(30):
        most = max(most, daemon.open_answers)
        time.sleep(0.03)
    assert 1 <= most <= CONFIG["limits"]["answers"] // 2


def test_a_watch_that_can_not_begin_leaves_nothing_behind(daemon: Daemon, server: Served, watched: str) -> None:
    there = daemon.assistant.watches
    config = there._configs[watched].model_copy(update={"name": "long", "question": "Is it? " * 2_000})
    with pytest.raises(Exception, match="tokens"):
        daemon.do(lambda: there._start(config))
    reply = httpx.get(f"{server.url}/v1/watches", timeout=60)
    assert reply.status_code == 200 and [each["name"] for each in reply.json()["watches"]] == [watched]


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/watches", "view"),
        ("GET", "/v1/watches/odd", "view"),
        ("GET", "/v1/watches/events", "view"),
        ("GET", "/v1/watches/events/event_0/still.jpg", "view"),
        ("GET", "/v1/events", "view"),
        ("GET", "/v1/streams/demo/timeline", "view"),
        ("GET", "/v1/streams/demo/timeline/density", "view"),
        ("GET", "/v1/streams/demo/timeline/1.jpg", "view"),
        ("GET", "/v1/streams/demo/clip?from=now", "view"),
        ("GET", "/v1/streams/demo/still?at=now", "view"),
        ("GET", "/metrics", "view"),
        ("POST", "/v1/watches", "ask"),
        ("PATCH", "/v1/watches/odd", "ask"),
        ("DELETE", "/v1/watches/none", "ask"),
        ("POST", "/v1/watches/events/event_0/feedback", "ask"),
        ("GET", "/v1/outputs", "admin"),
        ("POST", "/v1/outputs", "admin"),
        ("DELETE", "/v1/outputs/none", "admin"),
        ("DELETE", "/v1/streams/none/memory", "admin"),
    ],
)
def test_each_door_has_its_scope(scoped: Served, method: str, path: str, scope: str) -> None:
    def code(name: str) -> int:
        headers = {"Authorization": f"Bearer {name * 8}"}
        with httpx.stream(method, scoped.url + path, headers=headers, content=b"{}", timeout=60) as reply:
            return reply.status_code

    codes = {name: code(name) for name in ("view", "ask", "publish", "admin")}
    assert all((codes[name] == 403) == (name not in (scope, "admin")) for name in codes), codes
    assert httpx.request(method, scoped.url + path, content=b"{}", timeout=60).status_code == 401


@pytest.fixture(scope="module")
def scoped(daemon: Daemon) -> Iterator[Served]:
    tokens = [
        {"name": name, "scopes": [name], "digest": f"sha256:{token_digest(name * 8)}"}
        for name in ("view", "ask", "publish", "admin")
    ]
    with daemon.served(server={"tokens": tokens}) as server:
        yield server
