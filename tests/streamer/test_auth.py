"""Tokens, origins and limits, on a virtual clock."""

import pytest

from streamer.server.auth import SCOPES, Gate, Visitor, is_loopback, new_token, read_tokens, token_digest
from streamer.server.errors import RequestError
from streamer.server.limits import Limits, message_bucket

SECRET = new_token()
OTHER = new_token()
TOKENS = read_tokens(
    [f"phone view,ask {SECRET}", "", "# a comment", f"boss admin sha256:{token_digest(OTHER)}  # kept hashed"], "file"
)
HOST = {"host": "127.0.0.1:8765"}


def code(error: pytest.ExceptionInfo[RequestError]) -> str:
    return error.value.code


def test_tokens_are_kept_hashed() -> None:
    assert SECRET not in repr(TOKENS) and len(SECRET) > 40
    assert [token.name for token in TOKENS] == ["phone", "boss"]


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"authorization": f"Bearer {SECRET}"}, "phone"),
        ({"authorization": f"bearer  {OTHER} "}, "boss"),
        ({"sec-websocket-protocol": f"realtime, openai-insecure-api-key.{SECRET}"}, "phone"),
    ],
)
def test_token_is_recognised(headers: dict[str, str], name: str) -> None:
    assert Gate(TOKENS).admit({**HOST, **headers}, "10.0.0.1").name == name


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer"}, {"authorization": f"Basic {SECRET}"}, {"authorization": f"Bearer {SECRET}x"}],
)
def test_without_a_known_token_nobody_comes_in(headers: dict[str, str]) -> None:
    with pytest.raises(RequestError) as error:
        Gate(TOKENS).admit({**HOST, **headers}, "10.0.0.1")
    assert code(error) == "unauthorized"
    assert SECRET not in error.value.message


def test_without_tokens_everybody_may_everything() -> None:
    assert Gate([]).admit(HOST, "127.0.0.1") == Visitor("127.0.0.1", frozenset(SCOPES))


def test_scopes() -> None:
    phone, boss = (
        Gate(TOKENS).admit({**HOST, "authorization": f"Bearer {SECRET}"}, ""),
        Visitor("boss", frozenset({"admin"})),
    )
    assert phone.may("ask") and phone.may("publish", "view") and not phone.may("publish")
    assert all(boss.may(scope) for scope in SCOPES)
    with pytest.raises(RequestError, match="'admin'") as error:
        phone.need("admin")
    assert code(error) == "forbidden"


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ("phone view", "NAME SCOPES TOKEN"),
        (f"phone look {SECRET}", "look is no scope"),
        (f"phone , {SECRET}", "nothing is no scope"),
        ("phone view short", "shorter than 16"),
        ("phone view sha256:abc", "64 hexadecimal"),
    ],
    ids=["no token", "no such scope", "no scope", "a short token", "a short hash"],
)
def test_bad_tokens_are_refused_without_telling_them(line: str, mend: str) -> None:
    with pytest.raises(ValueError, match=mend) as error:
        read_tokens([line], "tokens.txt")
    assert "tokens.txt: entry 1" in str(error.value) and SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("headers", "comes_in"),
    [
        ({"host": "localhost:8765", "origin": "http://localhost:8765"}, True),
        ({"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:8765"}, True),
        ({"host": "[::1]:8765", "origin": "http://[::1]:8765"}, True),
        ({"host": "127.0.0.1:8765", "origin": "http://evil.example"}, False),
        ({"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:9999"}, False),
        ({"host": "127.0.0.1:8765", "origin": "null"}, False),
        ({"host": "evil.example:8765", "origin": "http://evil.example:8765"}, False),
        ({"host": "evil.example:8765"}, False),
        ({"host": "127.0.0.1:8765", "origin": "https://cam.example"}, True),
        ({"host": "cam.example", "origin": "https://cam.example"}, True),
        ({"host": "cam.example"}, True),
    ],
)
def test_browsers_come_in_from_known_pages_only(headers: dict[str, str], comes_in: bool) -> None:
    gate = Gate([], ["https://cam.example/"])
    if comes_in:
        gate.admit(headers, "127.0.0.1")
    else:
        with pytest.raises(RequestError) as error:
            gate.admit(headers, "127.0.0.1")
        assert code(error) == "forbidden"


def test_with_a_token_the_own_page_may_have_any_name() -> None:
    headers = {"host": "box.lan:8765", "origin": "http://box.lan:8765", "authorization": f"Bearer {SECRET}"}
    assert Gate(TOKENS).admit(headers, "10.0.0.1").name == "phone"
    with pytest.raises(RequestError):
        Gate(TOKENS).admit({**headers, "origin": "http://evil.example"}, "10.0.0.1")


def test_open_daemon_without_tokens_takes_no_page_of_a_mere_name() -> None:
    gate = Gate([])
    gate.admit({"host": "10.0.0.5:8765", "origin": "http://10.0.0.5:8765"}, "10.0.0.9")
    with pytest.raises(RequestError, match=r"server\.origins"):
        gate.admit({"host": "evil.example:8765", "origin": "http://evil.example:8765"}, "10.0.0.9")


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.9.9.9")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "box.lan", "")))


def test_connections_and_answers_are_counted_for_each_visitor() -> None:
    limits = Limits(connections=2, answers=1, questions_per_minute=100)
    limits.connect("a")
    limits.connect("a")
    limits.connect("b")
    with pytest.raises(RequestError) as error:
        limits.connect("a")
    assert code(error) == "too_many_connections" and error.value.retry_after
    limits.disconnect("a")
    limits.connect("a")
    limits.ask("a", 0.0)
    with pytest.raises(RequestError) as error:
        limits.ask("a", 0.0)
    assert code(error) == "too_many_answers"
    limits.ask("b", 0.0)
    limits.answered("a")
    limits.ask("a", 0.0)


def test_questions_are_limited_by_the_minute() -> None:
    limits = Limits(connections=1, answers=1_000, questions_per_minute=6)
    told = [limits.ask("a", 0.0)["remaining"] for _ in range(6)]
    assert told == [5, 4, 3, 2, 1, 0]
    with pytest.raises(RequestError) as error:
        limits.ask("a", 0.0)
    assert code(error) == "rate_limit_exceeded" and error.value.retry_after == pytest.approx(10)
    with pytest.raises(RequestError):
        limits.ask("a", 9.9)
    assert limits.ask("a", 10.1)["remaining"] == 0
    assert limits.ask("b", 10.1)["remaining"] == 5
    assert limits.ask("a", 1_000.0)["remaining"] == 5


def test_whoever_sends_fast_is_read_slowly() -> None:
    bucket = message_bucket(0.0)
    assert [bucket.take(0.0) for _ in range(500)] == [0.0] * 500
    assert bucket.take(0.0) == pytest.approx(1 / 200)
    assert bucket.take(0.0) == pytest.approx(2 / 200)
    assert bucket.take(1.0) == 0.0


def test_requests_are_limited_by_the_second() -> None:
    limits = Limits(connections=1, answers=1, questions_per_minute=1)
    for _ in range(1_000):
        limits.request("a", 0.0)
    with pytest.raises(RequestError) as error:
        limits.request("a", 0.0)
    assert code(error) == "rate_limit_exceeded"
    limits.request("b", 0.0)
    limits.request("a", 0.01)


def test_quiet_visitors_are_forgotten() -> None:
    limits = Limits(connections=1, answers=1, questions_per_minute=1)
    for number in range(5_000):
        limits.request(f"visitor {number}", number / 10)
    assert len(limits._requests) <= 1_001
