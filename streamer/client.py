"""Ask a running daemon over the wire: `AsyncClient`, and `Client` for code without an event loop.

Needs only the `websockets` package.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from streamer.client_recordings import AsyncRecorded, Recorded
from streamer.client_watches import NEWS as WATCH_NEWS
from streamer.client_watches import AsyncWatching, Watching
from streamer.wire import CLOSED, DEFAULT_URL, ClientError, fetch, lost, raise_for, refusal, unreached, websocket_url

__all__ = ["DEFAULT_URL", "AsyncClient", "Client", "ClientError"]
T = TypeVar("T")
NEWS = 1_024
_Waiter = asyncio.Queue[dict[str, Any] | None]
"""Events for one who waits; None when no more come."""


class AsyncClient(AsyncWatching, AsyncRecorded):
    """One connection to the daemon; used as an async context manager. Everything may be called while answers are open.

    Args:
        url: where the daemon listens (http, https, ws or wss); default $STREAMER_URL, else http://127.0.0.1:8765.
        token: bearer token; default $STREAMER_TOKEN.
        stream: the stream that questions are about; may be left out while there is only one.
        tls: an SSL context, for certificates that the system does not trust.
        timeout: seconds that connecting may take.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        stream: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.url = url or os.environ.get("STREAMER_URL") or DEFAULT_URL
        self.stream = stream
        self._token = token or os.environ.get("STREAMER_TOKEN")
        self._tls = tls
        self._timeout = timeout
        self._socket: ClientConnection | None = None
        self._numbers = itertools.count(1)
        self.session: dict[str, Any] = {}
        """What the daemon said of this session."""
        self.missed = 0
        """News given up because `events`, or `watch_events`, was not read."""
        self._reader: asyncio.Task[None] | None = None
        self._lost: ClientError | None = None
        self._asked: dict[str, _Waiter] = {}
        self._answers: dict[str, _Waiter] = {}
        self._replies: defaultdict[str, deque[_Waiter]] = defaultdict(deque)
        self._news: _Waiter = asyncio.Queue(NEWS)
        self._alarms: _Waiter | None = None
        """Who reads along what watches tell."""

    async def __aenter__(self) -> AsyncClient:
        address = websocket_url(self.url, self.stream)
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        extra: dict[str, Any] = {"ssl": self._tls} if self._tls is not None else {}
        try:
            self._socket = await connect(
                address,
                additional_headers=headers,
                compression=None,
                open_timeout=self._timeout,
                max_size=16 * 2**20,
                proxy=None,
                **extra,
            )
            created = json.loads(await self._socket.recv())
        except InvalidStatus as error:
            raise ClientError(*refusal(error, self.url)) from None
        except InvalidURI:
            raise ClientError(
                "bad_url", f"{self.url} is no address of a daemon: use {DEFAULT_URL} or the like."
            ) from None
        except (InvalidMessage, InvalidHandshake):
            raise ClientError("unreachable", f"What listens at {self.url} is not a streamer daemon.") from None
        except ssl.SSLCertVerificationError as error:
            raise ClientError(
                "untrusted",
                f"The certificate of {self.url} is not trusted ({error.verify_message}): name it with --ca.",
            ) from None
        except ConnectionClosed as error:
            raise lost(error) from None
        except (OSError, TimeoutError) as error:
            raise ClientError("unreachable", unreached(self.url, error)) from None
        self.session = created.get("session", {})
        self._reader = asyncio.create_task(self._read(self._socket))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader

    async def ask(
        self,
        question: str,
        *,
        stream: str | None = None,
        instructions: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        at: str | None = None,
        since: str | None = None,
        until: str | None = None,
        recording: str | None = None,
        moment: Callable[[dict[str, Any]], None] = lambda facts: None,
        progress: Callable[[int, int], None] = lambda shown, of: None,
    ) -> AsyncGenerator[str, None]:
        """Asks, and yields the answer as it is spoken. Leaving the loop early cancels the answer.

        `at` asks about a moment of the past, such as "10 minutes ago", "14:03" or an ISO time; `moment` is then told which one the
        answer speaks of: `asked`, `reached` (UTC), `how` it was reached and `before_s`, seconds between the two. `since` and
        `until` (now, if left out) ask about a recorded span instead, which the model is shown again. `moment` is called again
        whenever it has got on, and once at the end; `progress` hears how many steps have been shown, of all that there are.
        `recording` asks about one of `recordings` instead of a stream; `moment` is told what of it the answer rests on.

        Raises:
            ClientError: refused (unknown stream, empty question, too many answers), broken off, or connection lost.
        """
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]}
        response = {
            "conversation": "none",
            "input": [item],
            "stream": stream,
            "instructions": instructions,
            "max_output_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "at": at,
            "from": since,
            "to": until,
            "recording": recording,
        }
        given = {key: value for key, value in response.items() if value is not None}
        asked, waiter = self._expect()
        answer: str | None = None
        done = False
        await self._send("response.create", asked, response={**given, "metadata": {"asked": asked}})
        try:
            while not done:
                event = await self._event(waiter)
                match event["type"]:
                    case "response.created":
                        answer = event["response"]["id"]
                        if event["response"].get("moment"):
                            moment(event["response"]["moment"])
                    case "response.replaying":
                        moment(event["moment"])
                        progress(event["shown"], event["of"])
                    case "response.output_text.delta":
                        yield event["delta"]
                    case "response.done":
                        done = True
                        if event["response"].get("moment"):
                            moment(event["response"]["moment"])
                        raise_for(event["response"])
                    case "error":
                        done = True
                        raise ClientError(event["error"]["code"], event["error"]["message"])
        finally:
            if not done:
                with suppress(ClientError):
                    answer = answer or (await self._event(waiter)).get("response", {}).get("id")
                    await self._send("response.cancel", response_id=answer)
            self._asked.pop(asked, None)
            self._answers.pop(answer or "", None)

    async def timeline(
        self,
        *,
        stream: str | None = None,
        search: str | None = None,
        since: str | None = None,
        until: str | None = None,
        kinds: Sequence[str] = (),
        limit: int = 100,
        before: int | None = None,
    ) -> list[dict[str, Any]]:
        """What happened to a stream, the newest first: `id`, `wall` and `at` (when), `kind`, `text`, `data`, … of each entry.

        `search` is for words (FTS5), `since` and `until` are moments as people write them, `before` is the id that entries come
        before. Raises ClientError.
        """
        wanted: dict[str, Any] = {
            "stream": stream,
            "search": search,
            "from": since,
            "to": until,
            "kinds": list(kinds) or None,
        }
        wanted |= {"limit": limit, "before": before}
        given = {key: value for key, value in wanted.items() if value is not None}
        return list((await self._request("memory.list", "memory.listed", **given))["entries"])

    async def follow(self, stream: str | None = None) -> None:
        """From now on `events` tells what is added to a stream's timeline (`memory.added`), and to no other's. Raises ClientError."""
        await self._request("memory.subscribe", "memory.subscribed", **({"stream": stream} if stream else {}))

    async def still(self, stream: str, at: str) -> bytes:
        """The picture that stood at a recorded moment, as JPEG. Raises ClientError."""
        return await self._fetch(f"streams/{quote(stream, safe='')}/still", at=at)

    async def clip(self, stream: str, since: str, until: str | None = None, *, codec: str | None = None) -> bytes:
        """What was recorded from one moment to another (now, if left out), as MP4; `codec="h264"` plays in any browser.

        Raises ClientError.
        """
        named: dict[str, Any] = {"from": since, "to": until, "codec": codec}
        return await self._fetch(f"streams/{quote(stream, safe='')}/clip", **named)

    async def _fetch(self, path: str, method: str = "GET", body: Any = None, **query: str | None) -> bytes:
        how = {"token": self._token, "tls": self._tls, "method": method, "body": body}
        return await asyncio.to_thread(fetch, self.url, path, query, **how)

    async def streams(self) -> list[dict[str, Any]]:
        """One dictionary a stream: name, source, state, fps_in, fps_seen, drops, lag_s, newest_frame_age_s, uptime_s."""
        return list((await self._request("stream.list", "stream.listed"))["streams"])

    async def attach(self, stream: str, source: str, **options: Any) -> dict[str, Any]:
        """Adds a stream; returns its figures. Raises ClientError."""
        return await self._request("stream.attach", "stream.attached", stream=stream, source=source, options=options)

    async def detach(self, stream: str) -> None:
        """Removes a stream. Raises ClientError."""
        await self._request("stream.detach", "stream.detached", stream=stream)

    async def push(self, picture: bytes, *, stream: str | None = None, timestamp: float | None = None) -> None:
        """Shows one picture's file to a stream whose source is `push:`: JPEG, PNG, WebP, GIF, AVIF or TIFF.

        `timestamp` is in seconds, on your own axis.
        """
        fields: dict[str, Any] = {"video": base64.b64encode(picture).decode(), "stream": stream, "timestamp": timestamp}
        await self._send("input_video_buffer.append", **{k: v for k, v in fields.items() if v is not None})

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Whatever the daemon tells unasked: `stream.status`, `stream.dropped`, `stream.reset`, `memory.added`, errors about pushed frames.

        The newest `NEWS` wait to be read, from the connection's begin; `missed` counts those that were given up.
        """
        async for event in self._heard(self._news):
            yield event

    def _told(self) -> AsyncGenerator[dict[str, Any], None]:
        self._connection()
        waiter = self._alarms = _Waiter(NEWS)  # at once: what is told again comes right after the reply
        return self._heard(waiter)

    async def _heard(self, waiter: _Waiter) -> AsyncGenerator[dict[str, Any], None]:
        while True:
            yield await self._event(waiter)

    async def _request(self, kind: str, reply: str, **fields: Any) -> dict[str, Any]:
        asked, waiter = self._expect()
        self._replies[reply].append(waiter)
        try:
            await self._send(kind, asked, **fields)
            event = await self._event(waiter)
        finally:
            self._asked.pop(asked, None)
        if event["type"] == "error":
            raise ClientError(event["error"]["code"], event["error"]["message"])
        return event

    def _new_id(self) -> str:
        return f"client_{next(self._numbers)}"

    def _expect(self) -> tuple[str, _Waiter]:
        """An event's id, and who waits for what answers it until the id is forgotten."""
        self._connection()
        asked, waiter = self._new_id(), _Waiter()
        self._asked[asked] = waiter
        return asked, waiter

    async def _send(self, kind: str, event_id: str | None = None, **fields: Any) -> None:
        try:
            await self._connection().send(json.dumps({"type": kind, "event_id": event_id or self._new_id(), **fields}))
        except ConnectionClosed as error:
            raise lost(error) from None

    async def _event(self, waiter: _Waiter) -> dict[str, Any]:
        if self._lost is not None and waiter.empty():
            raise self._lost
        event = await waiter.get()
        if event is None:
            assert self._lost is not None
            raise self._lost
        return event

    async def _read(self, connection: ClientConnection) -> None:
        """Hands each event to who waits for it, until the connection ends."""
        try:
            while True:
                self._hand_over(json.loads(await connection.recv()))
        except ConnectionClosed as error:
            self._lost = lost(error)
        for waiter in (*self._asked.values(), *self._answers.values()):
            waiter.put_nowait(None)
        for news in (self._news, *([] if self._alarms is None else [self._alarms])):
            if not news.full():
                news.put_nowait(None)

    def _hand_over(self, event: dict[str, Any]) -> None:
        kind, waiter = event["type"], None
        if kind == "error":
            waiter = self._asked.get(event["error"]["event_id"])
            for replies in self._replies.values():
                if waiter is not None and waiter in replies:
                    replies.remove(waiter)
        elif kind.startswith("response."):
            response = event.get("response") or {"id": event.get("response_id")}
            if kind == "response.created":
                asked = (response.get("metadata") or {}).get("asked")
                if asked in self._asked:
                    self._answers[response["id"]] = self._asked[asked]
            waiter = self._answers.get(response["id"])
            if waiter is None:
                return  # of an answer that nobody reads any more
        elif self._replies.get(kind):
            waiter = self._replies[kind].popleft()
        if waiter is None:
            watched = kind.removeprefix("watch.") in WATCH_NEWS and kind.startswith("watch.")
            waiter = self._alarms if watched and self._alarms is not None else self._news
            if waiter.full():
                waiter.get_nowait()
                self.missed += 1
        waiter.put_nowait(event)

    def _connection(self) -> ClientConnection:
        if self._socket is None:
            raise ClientError("closed", CLOSED)
        return self._socket


class Client(Watching, Recorded):
    """`AsyncClient` for plain code: the same calls, blocking; `ask` is an ordinary iterator. Threads may share one."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._async = AsyncClient(url, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="streamer-client", daemon=True)

    def __enter__(self) -> Client:
        if self._thread.ident is not None:
            raise ClientError("closed", "A client is opened once: make a new one for another 'with' block.")
        self._thread.start()
        try:
            self._run(self._async.__aenter__)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._run(lambda: self._async.__aexit__(*error))
        finally:
            self._end()

    def ask(self, question: str, **options: Any) -> Iterator[str]:
        """Asks, and yields the answer as it is spoken; options as `AsyncClient.ask`. Raises ClientError."""
        return self._each(self._async.ask(question, **options))

    def timeline(self, **wanted: Any) -> list[dict[str, Any]]:
        """As `AsyncClient.timeline`."""
        return self._run(lambda: self._async.timeline(**wanted))

    def still(self, stream: str, at: str) -> bytes:
        """As `AsyncClient.still`."""
        return self._run(lambda: self._async.still(stream, at))

    def clip(self, stream: str, since: str, until: str | None = None, *, codec: str | None = None) -> bytes:
        """As `AsyncClient.clip`."""
        return self._run(lambda: self._async.clip(stream, since, until, codec=codec))

    def streams(self) -> list[dict[str, Any]]:
        """As `AsyncClient.streams`."""
        return self._run(self._async.streams)

    def attach(self, stream: str, source: str, **options: Any) -> dict[str, Any]:
        """As `AsyncClient.attach`."""
        return self._run(lambda: self._async.attach(stream, source, **options))

    def detach(self, stream: str) -> None:
        """As `AsyncClient.detach`."""
        self._run(lambda: self._async.detach(stream))

    def push(self, picture: bytes, **options: Any) -> None:
        """As `AsyncClient.push`."""
        self._run(lambda: self._async.push(picture, **options))

    @property
    def _calls(self) -> AsyncClient:
        return self._async

    def _each(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        try:
            while True:
                try:
                    yield self._run(items.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            if self._thread.is_alive():  # whoever still has the iterator may let it go after the client
                self._run(items.aclose)

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        async def work() -> T:
            return await call()

        if not self._thread.is_alive():
            raise ClientError("closed", CLOSED)
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
