"""The HTTP doors over a real socket: chat completions, models, streams, metrics; and every door × every scope."""

import asyncio
import base64
import io
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamer.config import Config, ConfigError
from streamer.server.auth import SCOPES, new_token, token_digest
from streamer.server.errors import Refusals
from streamer.server.tokens import known_tokens
from tests.streamer.serving import CONFIG, Daemon, Served, ask, eventually, receive, send, until

QUESTION = {"model": "nano", "messages": [{"role": "user", "content": "What is there?"}], "max_tokens": 3}
TOKENS = {scope: new_token() for scope in SCOPES}


@pytest.fixture(scope="module")
def locked(daemon: Daemon) -> Iterator[Served]:
    """A server that wants tokens: one for each scope."""
    tokens = [
        {"name": f"only-{scope}", "scopes": [scope], "digest": f"sha256:{token_digest(token)}"}
        for scope, token in TOKENS.items()
    ]
    with daemon.served(server={"tokens": tokens}) as server:
        yield server


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_chat_completion(http: httpx.Client) -> None:
    body = http.post("/v1/chat/completions", json=QUESTION).raise_for_status().json()
    choice = body["choices"][0]
    assert body["object"] == "chat.completion" and body["model"] == "nano"
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    assert body["usage"]["completion_tokens"] <= 3


def test_chat_completion_in_events(http: httpx.Client) -> None:
    asked = {**QUESTION, "model": "nano/demo", "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["usage"]["completion_tokens"] <= 3 and events[-1]["choices"] == []
    whole = http.post("/v1/chat/completions", json=QUESTION).json()["choices"][0]["message"]["content"]
    assert isinstance(whole, str)


def test_a_stop_sequence_ends_an_answer(http: httpx.Client, daemon: Daemon) -> None:
    said = http.post("/v1/chat/completions", json=QUESTION).json()["choices"][0]["message"]["content"]
    asked = {**QUESTION, "max_tokens": 20_000, "stop": [said[-1] * 2, said[-1]]}
    body = http.post("/v1/chat/completions", json=asked).raise_for_status().json()
    streamed = http.post("/v1/chat/completions", json={**asked, "stream": True}).raise_for_status().text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in streamed if line.startswith("data: {")]
    told = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    for text, reason in (
        (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]),
        (told, events[-1]["choices"][0]["finish_reason"]),
    ):
        assert reason == "stop" and said[-1] not in text
    assert body["usage"]["completion_tokens"] < 2_000 and daemon.open_answers == 0


def test_client_that_leaves_a_completion_ends_it(server: Served, daemon: Daemon) -> None:
    async def story(streaming: bool) -> None:
        asked = {**QUESTION, "max_tokens": 20_000, "stream": streaming}
        async with httpx.AsyncClient(base_url=server.url) as client:
            request = asyncio.create_task(client.post("/v1/chat/completions", json=asked))
            await eventually(lambda: daemon.open_answers == 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: daemon.open_answers == 0)

    asyncio.run(story(False))
    asyncio.run(story(True))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[]", 400, "invalid_event"),
        ("POST", "/v1/chat/completions", json.dumps({**QUESTION, "model": "gpt"}).encode(), 404, "model_not_found"),
        ("POST", "/v1/chat/completions", json.dumps({**QUESTION, "messages": []}).encode(), 400, "invalid_value"),
        ("GET", "/v1/models/gpt", b"", 404, "model_not_found"),
        ("GET", "/v1/streams/cellar", b"", 404, "unknown_stream"),
        ("DELETE", "/v1/streams/cellar", b"", 404, "unknown_stream"),
        ("GET", "/v1/streams/cellar/frame.jpg", b"", 404, "unknown_stream"),
        ("POST", "/v1/streams", b'{"name": "x"}', 400, "missing_required_parameter"),
        ("POST", "/v1/streams", b'{"name": "x", "source": "demo:", "speed": 3}', 400, "bad_option"),
        ("POST", "/v1/streams", b'{"name": "demo", "source": "demo:"}', 409, "stream_exists"),
        ("POST", "/v1/streams", b'{"name": "attachment-x", "source": "demo:"}', 400, "bad_option"),
        ("GET", "/v1/nothing", b"", 404, "not_found"),
        ("PUT", "/v1/models", b"", 405, "method_not_allowed"),
        ("POST", "/v1/responses", b'{"model": "nano"}', 400, "missing_required_parameter"),
        ("POST", "/v1/responses", b'{"model": "nano", "input": "x", "tools": [{}]}', 400, "missing_required_parameter"),
        ("DELETE", "/v1/streams/demo/memory?since=now", b"", 400, "bad_option"),
        ("GET", "/v1/streams/demo/timeline?since=now", b"", 400, "bad_option"),
        ("GET", "/v1/streams/demo/timeline/density?limit=3", b"", 400, "bad_option"),
    ],
)
def test_refusals_have_openais_shape(
    http: httpx.Client, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    response = http.request(method, path, content=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code and error["message"] and set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("POST", "/chat/completions", 404, "use POST /v1/chat/completions"),
        ("POST", "/v1/chat/completions/", 404, "use POST /v1/chat/completions"),
        ("POST", "//v1//chat/completions", 404, "use POST /v1/chat/completions"),
        ("POST", "/v1/v1/responses", 404, "use POST /v1/responses"),
        ("GET", "/v1/healthz", 404, "use GET /healthz"),
        ("DELETE", "/streams/demo", 404, "use DELETE /v1/streams/demo"),
        ("GET", "/v1/models/", 404, "use GET /v1/models"),
        ("PUT", "/models", 404, "use GET or HEAD /v1/models"),
        ("POST", "/v1/completions", 404, "there are /v1/chat/completions, /v1/responses,"),
        ("GET", "/v1/chat/completions", 405, "use POST"),
        ("PUT", "/v1/streams", 405, "use GET or HEAD or POST"),
        ("POST", "/healthz", 405, "use GET or HEAD"),
        ("POST", "/", 405, "Method Not Allowed"),
        ("GET", "/v1/realtime", 426, "connect with ws:// or wss://"),
    ],
)
def test_a_wrong_address_is_told_the_right_one(
    http: httpx.Client, method: str, path: str, status: int, told: str
) -> None:
    response = http.request(method, http.base_url.copy_with(raw_path=path.encode()))
    assert (response.status_code, told in response.json()["error"]["message"]) == (status, True), response.text
    if told.startswith("use") and status == 405:
        assert response.headers["allow"] == ", ".join(told.removeprefix("use ").split(" or "))


def test_a_response_whole_and_in_events(http: httpx.Client) -> None:
    asked = {"model": "nano", "input": "What is there?", "max_output_tokens": 3, "metadata": {"stream": "demo"}}
    whole = http.post("/v1/responses", json=asked).raise_for_status().json()
    assert whole["object"] == "response" and whole["output"][0]["content"][0]["text"]
    assert whole["usage"]["output_tokens"] <= 3 and whole["metadata"] == {"stream": "demo"}
    with http.stream("POST", "/v1/responses", json={**asked, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == said != ""
    assert events[-1]["response"]["status"] in ("completed", "incomplete")


def test_client_that_leaves_a_response_ends_it(server: Served, daemon: Daemon) -> None:
    async def story(streaming: bool) -> None:
        asked = {"model": "nano", "input": "What?", "max_output_tokens": 20_000, "stream": streaming}
        async with httpx.AsyncClient(base_url=server.url) as client:
            request = asyncio.create_task(client.post("/v1/responses", json=asked))
            await eventually(lambda: daemon.open_answers == 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: daemon.open_answers == 0)

    asyncio.run(story(False))
    asyncio.run(story(True))


def test_a_compressed_body_is_refused_by_name(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", content=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415 and "without Content-Encoding" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/healthz", "/v1/models", "/v1/streams/demo/frame.jpg", "/v1/streams/demo/video.mjpeg"]
)
def test_heads_end_and_old_http_is_spoken(server: Served, http: httpx.Client, path: str) -> None:
    assert http.head(path).status_code == 200
    with socket.create_connection(("127.0.0.1", server.port), 30) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        told = b""
        while b"\r\n\r\n" not in told:
            told += client.recv(65_536)
    head = told.split(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 200") and b"chunked" not in head


def test_body_that_is_too_large_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", content=b"x" * (33 * 2**20))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


def test_models_are_the_model_and_its_streams(http: httpx.Client) -> None:
    assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["nano", "nano/demo"]
    assert http.get("/v1/models/nano/demo").json()["id"] == "nano/demo"


def test_streams_are_added_shown_and_removed(http: httpx.Client) -> None:
    added = http.post("/v1/streams", json={"name": "extra", "source": "demo:", "fps": 2})
    assert added.status_code == 201 and added.json()["name"] == "extra"
    assert http.get("/v1/streams/extra").json()["source"] == "demo:"
    assert http.delete("/v1/streams/extra").status_code == 204
    picture = http.get("/v1/streams/demo/frame.jpg")
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (640, 360)


def test_video_is_motion_jpeg(http: httpx.Client) -> None:
    with http.stream("GET", "/v1/streams/demo/video.mjpeg") as response:
        assert response.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        data = b""
        for chunk in response.iter_raw():
            data += chunk
            if data.count(b"--frame\r\n") > 2:
                break
    head, picture = data.split(b"\r\n\r\n", 1)
    assert b"Content-Type: image/jpeg" in head
    assert picture.startswith(b"\xff\xd8")


def test_metrics_are_prometheus(http: httpx.Client, daemon: Daemon) -> None:
    http.post("/v1/chat/completions", json=QUESTION)
    text = http.get("/metrics").text
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    assert values["streamer_ready"] == 1
    assert values["streamer_state_bytes"] == daemon.assistant.model.state_bytes > 1_000_000  # to the last digit
    assert values['streamer_frames_seen_total{stream="demo"}'] > 0
    assert values['streamer_source_state{state="live",stream="demo"}'] == 1
    assert values['streamer_frames_in_total{stream="demo"}'] >= values['streamer_frames_seen_total{stream="demo"}']
    assert values['streamer_frames_left_out_total{reason="thinned",stream="demo"}'] > 0
    assert values['streamer_source_changes_total{state="live",stream="demo"}'] == 1
    assert values['streamer_step_seconds_bucket{kind="frames",le="+Inf"}'] > 0
    assert values['streamer_step_seconds_count{kind="decode"}'] > 0
    assert values["streamer_first_token_seconds_count"] >= 1
    assert values["streamer_oldest_question_seconds"] == 0
    assert all(
        values[f'streamer_integrity_faults_total{{kind="{kind}"}}'] == 0 for kind in ("slots", "frames", "answers")
    )
    assert sum(value for name, value in values.items() if name.startswith("streamer_questions_total")) >= 1
    steps = [value for name, value in values.items() if name.startswith('streamer_step_seconds_bucket{kind="frames"')]
    assert steps == sorted(steps)


def test_every_refused_question_is_counted(server: Served, http: httpx.Client) -> None:
    def refused() -> int:
        lines = [line for line in http.get("/metrics").text.splitlines() if 'outcome="refused"' in line]
        return int(float(lines[0].rsplit(" ", 1)[1])) if lines else 0

    async def story() -> int:
        told = 0
        async with server.connect() as client:
            await receive(client)
            for number in range(20):
                asked = {"instructions": "What?", "conversation": "none", "max_output_tokens": 20_000}
                await send(client, "response.create", response=asked, event_id=f"q{number}")
            await send(client, "conversation.item.retrieve", item_id="none", event_id="last")
            while (event := await receive(client)).get("error", {}).get("event_id") != "last":
                told += event["type"] == "error" or event.get("response", {}).get("status") == "failed"
        return told

    before = refused()
    told = asyncio.run(story())
    assert told and refused() - before == told


def test_readiness(http: httpx.Client) -> None:
    assert http.get("/readyz").status_code == 200


DOORS: list[tuple[str, str, set[str]]] = [
    ("GET", "/healthz", {*SCOPES, "nobody"}),
    ("GET", "/readyz", {*SCOPES, "nobody"}),
    ("GET", "/metrics", {"view", "admin"}),
    ("GET", "/v1/models", {"view", "ask", "admin"}),
    ("GET", "/v1/models/nano", {"view", "ask", "admin"}),
    ("GET", "/v1/streams", {"view", "admin"}),
    ("GET", "/v1/streams/demo", {"view", "admin"}),
    ("GET", "/v1/streams/demo/frame.jpg", {"view", "admin"}),
    ("POST", "/v1/streams", {"admin"}),
    ("DELETE", "/v1/streams/cellar", {"admin"}),
    ("GET", "/v1/streams/demo/timeline", {"view", "admin"}),
    ("GET", "/v1/streams/demo/timeline/density", {"view", "admin"}),
    ("GET", "/v1/streams/demo/timeline/1.jpg", {"view", "admin"}),
    ("GET", "/v1/streams/demo/still?at=now", {"view", "admin"}),
    ("GET", "/v1/streams/demo/clip?from=1%20minute%20ago", {"view", "admin"}),
    ("DELETE", "/v1/streams/cellar/memory", {"admin"}),
    ("POST", "/v1/chat/completions", {"ask", "admin"}),
    ("POST", "/v1/responses", {"ask", "admin"}),
    ("POST", "/whip/cam", {"publish", "admin"}),
    ("PATCH", "/whip/cam/session", {"publish", "admin"}),
    ("DELETE", "/whip/cam/session", {"publish", "admin"}),
]
EVENTS: list[tuple[dict[str, Any], set[str]]] = [
    ({"type": "stream.list"}, {"view", "admin"}),
    ({"type": "memory.list", "stream": "demo"}, {"view", "admin"}),
    ({"type": "memory.subscribe", "stream": "demo"}, {"view", "admin"}),
    ({"type": "stream.status", "stream": "demo"}, {"view", "admin"}),
    ({"type": "stream.frame", "stream": "demo"}, {"view", "admin"}),
    ({"type": "stream.attach", "stream": "x", "source": "/no/such.mp4"}, {"admin"}),
    ({"type": "input_video_buffer.append", "video": "/9j/4A=="}, {"publish", "admin"}),
    ({"type": "response.create", "response": {"instructions": "Say", "max_output_tokens": 1}}, {"ask", "admin"}),
]


@pytest.mark.parametrize("who", [*SCOPES, "nobody"])
@pytest.mark.parametrize(("method", "path", "allowed"), DOORS)
def test_every_door_for_every_scope(locked: Served, method: str, path: str, allowed: set[str], who: str) -> None:
    headers = bearer(TOKENS[who]) if who != "nobody" else {}  # type: ignore[index]
    with httpx.Client(base_url=locked.url, headers=headers, timeout=60) as client:
        body = json.dumps(QUESTION) if path.endswith("completions") else "{}"
        status = client.request(method, path, content=body if method == "POST" else None).status_code
    if who in allowed:
        assert status not in (401, 403)
    else:
        assert status == (401 if who == "nobody" else 403)


@pytest.mark.parametrize("who", SCOPES)
@pytest.mark.parametrize(("event", "allowed"), EVENTS)
def test_every_event_for_every_scope(locked: Served, event: dict[str, Any], allowed: set[str], who: str) -> None:
    async def story() -> None:
        async with locked.connect(additional_headers=bearer(TOKENS[who])) as client:  # type: ignore[index]
            await receive(client)
            await client.send(json.dumps(event))
            reply = await receive(client)
            forbidden = reply["type"] == "error" and reply["error"]["code"] == "forbidden"
            assert forbidden == (who not in allowed), reply

    asyncio.run(story())


def test_websocket_without_a_token_is_refused_at_the_handshake(locked: Served) -> None:
    async def story() -> None:
        for headers in ({}, bearer("str_wrong"), {"Origin": "http://evil.example", **bearer(TOKENS["ask"])}):
            with pytest.raises(InvalidStatus) as refused:
                await locked.connect(additional_headers=headers)
            assert refused.value.response.status_code == (403 if "Origin" in headers else 401)
            body = refused.value.response.body
            assert body is not None and "error" in json.loads(body)

    asyncio.run(story())


def test_browser_names_its_token_by_subprotocol(locked: Served) -> None:
    async def story() -> None:
        offered: list[Any] = ["realtime", f"openai-insecure-api-key.{TOKENS['view']}"]
        async with locked.connect(subprotocols=offered) as client:
            assert client.subprotocol == "realtime"
            assert (await receive(client))["type"] == "session.created"

    asyncio.run(story())


def test_who_may_not_view_hears_nothing(locked: Served) -> None:
    async def story() -> None:
        async with locked.connect("?stream=demo", additional_headers=bearer(TOKENS["ask"])) as client:
            await receive(client)
            await send(client, "stream.list")
            assert (await receive(client))["type"] == "error"

    asyncio.run(story())


def test_limits_of_one_visitor(daemon: Daemon) -> None:
    async def story(server: Served) -> None:
        async with server.connect() as first, server.connect() as second:
            await receive(first)
            with pytest.raises(ConnectionClosed):
                await until(await server.connect(), "never")
            third = await server.connect()
            await third.wait_closed()
            assert third.close_code == 1013
            await ask(first, max_output_tokens=20_000)
            await until(first, "response.output_text.delta")
            await ask(second, max_output_tokens=1)
            assert (await until(second, "error"))[-1]["error"]["code"] == "too_many_answers"
            await send(first, "response.cancel")
            await until(first, "response.done")
            await ask(second, max_output_tokens=1)
            events = await until(second, "response.done")
            limits = next(event for event in events if event["type"] == "rate_limits.updated")["rate_limits"]
            assert limits[0]["limit"] == 3 and limits[0]["remaining"] <= 1
        async with httpx.AsyncClient(base_url=server.url) as client:
            for _ in range(3):
                response = await client.post("/v1/chat/completions", json=QUESTION)
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(response.headers["retry-after"]) <= 20

    limits = {"visitor_connections": 2, "visitor_answers": 1, "visitor_questions_per_minute": 3}
    with daemon.served(limits={**CONFIG["limits"], **limits}) as server:
        asyncio.run(story(server))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2"])
def test_open_addresses_need_tokens_and_tls_or_two_words(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for once in (0, 1):
        with pytest.raises(ConfigError, match=r"no token and no TLS certificate: .* say it twice"):
            known_tokens(Config.model_validate({"server": {"host": host, "insecure": once}}))
    assert known_tokens(Config.model_validate({"server": {"host": host, "insecure": 2}})) == []
    monkeypatch.setenv("STREAMER_TOKENS", f"a view {new_token()}; b admin {new_token()}")
    with pytest.raises(ConfigError, match="there is no TLS certificate"):
        known_tokens(Config.model_validate({"server": {"host": host}}))
    assert [token.name for token in known_tokens(Config.model_validate({}))] == ["a", "b"]


def test_bad_token_files_and_certificates_are_named(tmp_path: Any) -> None:
    for server, mend in (
        ({"token_file": str(tmp_path / "no")}, "can't be read"),
        ({"certificate": str(tmp_path / "no"), "key": str(tmp_path / "no")}, "can't be read"),
    ):
        with pytest.raises(ConfigError, match=mend):
            known_tokens(Config.model_validate({"server": server}))
    (tmp_path / "tokens").write_text("a view short")
    with pytest.raises(ConfigError, match="entry 1"):
        known_tokens(Config.model_validate({"server": {"token_file": str(tmp_path / "tokens")}}))


def test_no_secret_in_an_error(locked: Served) -> None:
    secret = base64.b64encode(b"not a token of this daemon").decode()
    response = httpx.get(f"{locked.url}/v1/streams", headers=bearer(secret))
    assert response.status_code == 401 and secret not in response.text
    assert response.headers["www-authenticate"] == "Bearer"


def test_allowed_pages_of_other_origins_may_fetch_and_no_others(daemon: Daemon) -> None:
    with daemon.served(server={"origins": ["https://cam.example"]}) as server:
        for origin, allowed in (("https://cam.example", True), ("https://evil.example", False)):
            headers = "authorization,content-type,x-stainless-arch,x-stainless-retry-count,x-stainless-timeout"
            asked = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": headers,
            }
            preflight = httpx.options(f"{server.url}/v1/chat/completions", headers=asked)
            assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
            assert not allowed or preflight.headers["access-control-allow-headers"] == headers
            assert preflight.status_code == (200 if allowed else 400)
            fetched = httpx.get(f"{server.url}/v1/streams", headers={"Origin": origin})
            assert (fetched.status_code, "access-control-allow-origin" in fetched.headers) == (
                (200, True) if allowed else (403, False)
            )


def test_refusals_are_logged_without_secrets(locked: Served, caplog: pytest.LogCaptureFixture) -> None:
    locked.app.state.refusals = Refusals()
    with caplog.at_level("INFO", logger="streamer"):
        httpx.get(f"{locked.url}/v1/streams?token=s3cret-in-the-address", headers=bearer("str_wrong-s3cret"))
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "127.0.0.1" in line and "unauthorized" in line and "s3cret" not in caplog.text
