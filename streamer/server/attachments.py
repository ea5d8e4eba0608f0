"""Pictures and videos that come with a question: a stream that lives no longer than the question's answer."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx
import numpy as np

from capture.image import PictureError, decode_image, image_header
from capture.lifecycle import PLAYED
from capture.network.policy import looked_up, resolve
from protocols.chat import video_file
from protocols.fields import picture_file
from protocols.question import Attachment, Question
from streamer.server.errors import RequestError

if TYPE_CHECKING:
    from streamer.assistant import Assistant

log = logging.getLogger("streamer.http")
PREFIX = "attachment-"
MOST_SECONDS = 60.0
"""Attachments must have been seen within this time."""
FETCH_SECONDS = 10.0
FETCH_BYTES = 32 * 2**20
_DECODERS = ThreadPoolExecutor(2, "pictures")
"""A picture that is decoded takes tens of megabytes."""
LARGE_PIXELS = 2**22
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's: it keeps what a large picture took for the thread that asked for it, and for each of its threads anew, unless told."""
VIDEO_FPS = 2.0
"""Frames a second that are seen of an attached video."""


@dataclass(slots=True)
class Broken:
    """What is told of a video that came in part: see `streamer.engine.answer.Moment`."""

    note: str
    reached: float = 0.0

    def facts(self) -> dict[str, Any]:
        """As every wire shows it."""
        return {"note": self.note}


async def decoded(data: bytes) -> np.ndarray:
    """A picture's pixels, uint8 [height, width, 3], off the loop, of all clients' pictures few at a time. Raises PictureError."""
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, _decoded, data)


def _decoded(data: bytes) -> np.ndarray:
    header = image_header(data)
    try:
        return decode_image(data)
    finally:
        if not header.reducible and header.width * header.height > LARGE_PIXELS and _TRIM is not None:
            _TRIM(0)


async def fetched(question: Question, domains: Collection[str]) -> Question:
    """The question with the bytes of all that it brings along. Raises what `fetch` raises."""
    if all(each.data is not None for each in question.attachments):
        return question
    attachments = [
        each if each.data is not None else await fetch(each.kind, each.url or "", domains)
        for each in question.attachments
    ]
    return replace(question, attachments=tuple(attachments))


async def fetch(kind: Literal["image", "video"], url: str, domains: Collection[str]) -> Attachment:
    """Fetches what a request names by address, from allowed hosts only and without following redirects.

    Raises RequestError: url_not_allowed, url_failed.
    """
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        raise RequestError("url_not_allowed", f"{url[:100]!r} is no address: send a data URI.") from None
    if host not in domains:
        raise RequestError(
            "url_not_allowed",
            f"Nothing is fetched from {host[:100]!r}: send a data URI, or allow server.media_domains.",
        )
    data = bytearray()
    try:
        await looked_up(
            resolve, host
        )  # httpx would wait for silent name servers on the threads that all else is read on
        async with (
            httpx.AsyncClient(timeout=FETCH_SECONDS, trust_env=False) as client,
            client.stream("GET", url) as got,
        ):
            if got.status_code != 200:
                raise RequestError("url_failed", f"{host} answers {got.status_code}.")
            async for chunk in got.aiter_bytes():
                data += chunk
                if len(data) > FETCH_BYTES:
                    raise RequestError("url_failed", f"{host} sends more than {FETCH_BYTES // 2**20} MiB.")
        return Attachment(kind, picture_file(bytes(data)) if kind == "image" else video_file(bytes(data)))
    except OSError as error:
        raise RequestError("url_failed", f"{host} can't be fetched from: {error}.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RequestError("url_failed", f"{host} can't be fetched from: {type(error).__name__}.") from None
    except ValueError as error:
        raise RequestError("url_failed", f"What {host} sends {error}.") from None


@asynccontextmanager
async def shown(assistant: Assistant, attachments: Sequence[Attachment]) -> AsyncIterator[tuple[str, Broken | None]]:
    """The name of a stream that has shown the attachments, and what is told where part of a video is missing.

    The stream is gone afterwards.

    Pictures are shown in order; a video stands alone. Raises RequestError and AssistantError.
    """
    name, note = f"{PREFIX}{secrets.token_hex(6)}", ""
    videos = [each for each in attachments if each.kind == "video"]
    if videos and len(attachments) > 1:
        raise RequestError("invalid_value", "A question takes one video, or pictures: not both, nor several videos.")
    try:
        if videos:
            async with asyncio.timeout(MOST_SECONDS):
                note = await _show_video(assistant, name, videos[0].data or b"")
        else:
            # Under the policy of cameras a picture that a busy device is late for would be left out, and waited for in vain.
            await assistant.attach(name, "push://attachment", policy="every", keep="nothing")
            async with asyncio.timeout(MOST_SECONDS):
                await _show_pictures(assistant, name, [each.data or b"" for each in attachments])
        yield name, Broken(note) if note else None
    except TimeoutError:
        raise RequestError("payload_too_large", f"What is given could not be seen in {MOST_SECONDS:g} s.") from None
    finally:
        if any(status.name == name for status in assistant.streams()):
            await assistant.detach(name)


async def _show_pictures(assistant: Assistant, name: str, pictures: Sequence[bytes]) -> None:
    """Each picture fills one step of the model, however many frames that takes."""
    copies = assistant.model.frames_per_step
    for number, data in enumerate(pictures):
        try:
            pixels = await decoded(data)
        except PictureError as error:
            raise RequestError("invalid_value", str(error)) from None
        for copy in range(copies):
            assistant.push(name, pixels, (number * copies + copy) / VIDEO_FPS)
        await _seen(assistant, name, (number + 1) * copies)


async def _show_video(assistant: Assistant, name: str, data: bytes) -> str:
    """Why it ends before its end; nothing where it does not."""
    try:
        file = await asyncio.to_thread(_kept, data)
    except OSError as error:
        log.error(
            "a video can't be kept while it is shown (%s): make room where TMPDIR is, or set it elsewhere",
            error.strerror,
        )
        raise RequestError("no_storage", "There is no room here to keep a video while it is shown.", 60.0) from None
    with file:
        await assistant.attach(name, file.name, policy="every", realtime=False, fps=VIDEO_FPS, keep="nothing")
        while True:
            status = next(each for each in assistant.streams() if each.name == name)
            if str(status.state) == "ended":
                break
            await asyncio.sleep(0.01)
        reason = status.reason.replace(file.name, "video")
        if not status.frames_in:
            raise RequestError("invalid_value", f"The video can't be decoded: {reason}.")
        await _seen(assistant, name, 1)
        return "" if reason == PLAYED else reason


def _kept(data: bytes) -> IO[bytes]:
    """A file that holds a video until it is closed. Raises OSError."""
    file = tempfile.NamedTemporaryFile(prefix="streamer-", suffix=".video")  # noqa: SIM115
    try:
        file.write(data)
        file.flush()
    except OSError:
        with suppress(OSError):  # what could not be written before can't be now; the file goes all the same
            file.close()
        raise
    return file


async def _seen(assistant: Assistant, name: str, frames: int) -> None:
    """Waits until so many frames are in the state and nothing more is coming for a moment."""
    seen, since = -1, time.monotonic()
    while True:
        status = next(each for each in assistant.streams() if each.name == name)
        if status.frames_seen != seen:
            seen, since = status.frames_seen, time.monotonic()
        if seen >= frames and (str(status.state) != "ended" or time.monotonic() - since > 0.3):
            return
        await asyncio.sleep(0.005)
