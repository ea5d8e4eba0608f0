"""Tokens that are taken away, that expire, and configurations that can't be read again."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from streamer.config import Config, ConfigError, parse_config
from streamer.daemon import Daemon, _reload
from streamer.server.auth import Gate, Visitor, new_token, read_tokens
from streamer.server.tokens import LEEWAY
from tests.tiny import TINY

ADA, BOB = new_token(), new_token()


def config(file: Path, **limits: Any) -> Config:
    return parse_config(
        {
            "server": {"port": 0, "token_file": str(file)},
            "model": TINY,
            "streams": [{"name": "demo", "source": "demo:", "fps": 2}],
            "limits": {"streams": 1, "answers": 1, **limits},
        }
    )


@asynccontextmanager
async def session(url: str, token: str) -> AsyncIterator[Any]:
    header = {"Authorization": f"Bearer {token}"}
    async with connect(url.replace("http", "ws") + "/v1/realtime", additional_headers=header, proxy=None) as client:
        await client.recv()
        yield client


async def closed(client: Any) -> int:
    with suppress(ConnectionClosed):
        while True:
            await asyncio.wait_for(client.recv(), 60)
    return int(client.close_code)


def test_a_token_that_is_removed_is_good_no_longer(tmp_path: Path) -> None:
    """Its websockets and its pictures end, others go on; limits are as configured, and what can't change is said."""
    file = tmp_path / "tokens"
    file.write_text(f"ada view,ask {ADA}\nbob view {BOB}\n")

    begun = threading.Event()

    def get(url: str, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{url}/v1/streams", headers=headers, timeout=60).status_code

    def watch(url: str, token: str) -> None:
        address, headers = f"{url}/v1/streams/demo/video.mjpeg", {"Authorization": f"Bearer {token}"}
        with httpx.stream("GET", address, headers=headers, timeout=60) as reply:
            assert reply.status_code == 200
            for _ in reply.iter_raw():
                begun.set()

    async def story() -> None:
        daemon = Daemon(config(file))
        url = await daemon.start()
        try:
            async with session(url, ADA) as ada, session(url, BOB) as bob:
                watching = asyncio.create_task(asyncio.to_thread(watch, url, ADA))
                assert await asyncio.to_thread(begun.wait, 60)
                assert await daemon.reload(config(file)) == ["nothing changed"]
                file.write_text(f"bob view {BOB}\n")
                assert await daemon.reload(config(file)) == ["token ada is no longer good"]
                assert await closed(ada) == 1008
                await asyncio.wait_for(watching, 60)
                assert await asyncio.to_thread(get, url, ADA) == 401
                assert await asyncio.to_thread(get, url, BOB) == 200
                file.write_text("bob view\n")
                with pytest.raises(ConfigError, match="NAME SCOPES TOKEN"):
                    await daemon.reload(config(file))
                assert await asyncio.to_thread(get, url, BOB) == 200, "a file that can't be read changes nothing"
                file.write_text(f"bob view,ask {BOB}\nada view {ADA}\n")
                lines = await daemon.reload(config(file, visitor_connections=1, streams=3))
                assert set(lines) == {
                    "token ada is good now",
                    "token bob may ask, view now",
                    "limits.streams changed: start the daemon again for it",
                    "answers and limits of questions are as configured now",
                }
                assert await closed(bob) == 1008, "what it may do has changed: it may come again"
            async with session(url, ADA), session(url, BOB):
                header = {"Authorization": f"Bearer {ADA}"}
                address = url.replace("http", "ws") + "/v1/realtime"
                async with connect(address, additional_headers=header, proxy=None) as second:
                    assert await closed(second) == 1013, "the new limit holds"
        finally:
            await daemon.stop()

    asyncio.run(asyncio.wait_for(story(), 200))


def test_what_a_signed_token_opened_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(secret := b"s" * 40)
    server = {"port": 0, "jwt": {"key_file": str(tmp_path / "key"), "audience": "streamer", "algorithm": "HS256"}}
    base = config(tmp_path).model_dump(mode="json", exclude_unset=True)

    def token(seconds: float) -> str:
        claims = {"sub": "eve", "aud": "streamer", "scope": "view ask", "exp": time.time() - LEEWAY + seconds}
        return jwt.encode(claims, secret, "HS256")

    async def story() -> None:
        daemon = Daemon(parse_config({**base, "server": server}))
        url = await daemon.start()
        try:
            short, long = token(6), token(600)
            async with session(url, short) as first, session(url, long) as second:
                assert await closed(first) == 1008 and first.close_reason == "this token is no longer good"
                headers = {"Authorization": f"Bearer {short}"}
                reply = await asyncio.to_thread(httpx.get, f"{url}/v1/streams", headers=headers, timeout=60)
                assert reply.status_code == 401 and "expired" in reply.text
                await second.send('{"type": "stream.list"}')
                while "stream.listed" not in await asyncio.wait_for(second.recv(), 60):
                    pass
        finally:
            await daemon.stop()

    asyncio.run(asyncio.wait_for(story(), 200))


def test_who_may_stay() -> None:
    now = time.time()
    tokens = read_tokens([f"ada view {ADA}"], "test")
    gate, free = Gate(tokens), Gate([])
    headers = {"host": "localhost", "authorization": f"Bearer {ADA}"}
    ada, anybody = gate.admit(headers, "127.0.0.1"), free.admit(headers, "127.0.0.1")
    signed = Visitor("eve", frozenset({"view"}), expires=now + 10)
    assert gate.stands(ada, now) and free.stands(anybody, now) and not gate.stands(anybody, now)
    assert not gate.stands(signed, now), "signed tokens are not accepted"
    gate.renew(tokens, [], object())  # type: ignore[arg-type]
    assert gate.stands(signed, now) and not gate.stands(signed, now + 11) and gate.stands(ada, math.inf)
    assert gate.renew(read_tokens([f"ada view,ask {ADA}"], "test"), [], None) == ["token ada may ask, view now"]
    assert not gate.stands(ada, now)
    gate.renew([], [], None)
    assert gate.stands(anybody, now)


def test_a_reload_that_fails_is_told_and_the_next_one_works(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    class Stub:
        async def reload(self, config: Config) -> list[str]:
            return [f"{len(config.streams)} streams"]

    failures = [OSError("the disk is gone"), RuntimeError("x"), ConfigError(["a: wrong"], "file")]

    def read() -> Config:
        if failures:
            raise failures.pop(0)
        return config(tmp_path)

    async def story() -> None:
        asked = asyncio.Event()
        loop = asyncio.create_task(_reload(Stub(), asked, read))  # type: ignore[arg-type]
        for number in range(4):
            asked.set()
            while len(caplog.records) <= number:
                await asyncio.sleep(0.01)
        loop.cancel()

    with caplog.at_level(logging.INFO, "streamer"):
        asyncio.run(asyncio.wait_for(story(), 60))
    disk, broken, wrong, well = caplog.messages
    assert "the disk is gone" in disk and "x" in broken and "a: wrong" in wrong and well == "1 streams"
