"""Pictures and videos that come with a question, and frames that are pushed."""

import asyncio
import base64
import io
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from capture.image import PictureError, decode_image
from capture.sources.demo import CLIP as DEMO
from tests.streamer.serving import CONFIG, Daemon, Served, eventually, receive, send, until


def turned() -> bytes:
    """Clear above and red below, once it is turned by 90° as its EXIF asks."""
    exif, pixels = Image.Exif(), np.full((48, 64, 4), (230, 10, 10, 255), np.uint8)
    exif[0x0112] = 6
    pixels[:, :32, 3] = 0
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", exif=exif)
    return out.getvalue()


TURNED = turned()
CLIP = Path(__file__).parents[1] / "clips" / "small.mp4"


def picture(kind: str = "PNG", width: int = 64, height: int = 48) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(out, kind)
    return out.getvalue()


def moving(kind: str) -> bytes:
    pictures = [Image.new("RGB", (64, 48), (n * 80, 0, 0)) for n in range(3)]
    out = io.BytesIO()
    pictures[0].save(out, kind, save_all=True, append_images=pictures[1:], duration=700)
    return out.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def question(*parts: dict[str, Any]) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return {"model": "nano", "max_tokens": 2, "messages": [{"role": "user", "content": content}]}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def completed(server: Served, *parts: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=question(*parts), timeout=60)


@pytest.mark.parametrize(
    "parts",
    [
        (image(uri(picture())),),
        (image(uri(picture("JPEG"), "image/jpeg")), image(uri(picture(width=100)))),
        (
            image(uri(picture("WEBP"), "IMAGE/WEBP")),
            image(uri(picture("GIF"), "image/gif")),
            image(uri(picture("AVIF"))),
        ),
        (video(uri(CLIP.read_bytes(), "video/mp4")),),
        (video(uri(moving("GIF"), "image/gif")),),
        (video(uri(moving("WEBP"), "image/webp")),),
        (video(uri(moving("AVIF"), "video/avif")),),
    ],
)
def test_question_about_what_it_brings(server: Served, daemon: Daemon, parts: Any) -> None:
    response = completed(server, *parts)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] and "moment" not in response.json()
    assert [status.name for status in daemon.do(daemon.assistant.streams)] == ["demo"]


def test_a_video_of_which_part_is_missing_is_told(server: Served) -> None:
    """Beside the answer about what there is."""
    film = io.BytesIO()
    with av.open(str(DEMO)) as source, av.open(film, "w", format="matroska") as made:
        stream = made.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    data = film.getvalue()
    told = completed(server, video(uri(data[: len(data) // 4], "video/x-matroska"))).json()
    assert told["choices"][0]["message"]["content"]
    note = told["moment"]["note"]
    assert note.startswith("video: it breaks off after ") and note.endswith(" of 48.0 s: the file is truncated")


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((image(uri(picture()[:40])),), "invalid_value"),
        ((video(uri(b"#EXTM3U\nfile:///etc/passwd\n", "video/mp4")),), "invalid_value"),
        ((video(uri(CLIP.read_bytes()[:2_000], "video/mp4")),), "invalid_value"),
        ((image(uri(picture())), video(uri(CLIP.read_bytes(), "video/mp4"))), "invalid_value"),
        ((image("http://169.254.169.254/latest/meta-data"),), "url_not_allowed"),
        ((image("http://localhost/x.png"),), "url_not_allowed"),
    ],
)
def test_bad_media_are_refused(server: Served, daemon: Daemon, parts: Any, code: str) -> None:
    response = completed(server, *parts)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code), response.text
    assert "/tmp" not in response.text
    assert [status.name for status in daemon.do(daemon.assistant.streams)] == ["demo"]


def test_every_door_shows_what_people_see(server: Served, daemon: Daemon) -> None:
    """A turned picture with clear parts, as the model saw it: pushed over the websocket and attached as a file."""

    async def story() -> bytes:
        async with server.connect() as client:
            await receive(client)
            await send(client, "stream.attach", stream="eyes", source="push://eyes")
            await receive(client)
            await send(client, "session.update", session={"stream": "eyes"})
            looking = asyncio.create_task(asyncio.to_thread(shot, server, "eyes"))
            while not looking.done():
                await client.send(TURNED)
                await asyncio.sleep(0.2)
            return looking.result()

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Path(file.name).write_bytes(TURNED)
        daemon.run(lambda: daemon.assistant.attach("still", file.name))
        for data in (asyncio.run(story()), shot(server, "still")):
            with Image.open(io.BytesIO(data)) as seen:
                assert seen.size == (48, 64)
                top, below = seen.getpixel((24, 10)), seen.getpixel((24, 54))
            assert isinstance(top, tuple) and isinstance(below, tuple)
            assert min(top) > 240 and below[0] > 200 and below[1] < 60
    for name in ("eyes", "still"):
        daemon.run(lambda name=name: daemon.assistant.detach(name))  # type: ignore[misc]


def shot(server: Served, name: str) -> bytes:
    """The picture that a stream's model saw last, once there is one."""
    for _ in range(200):
        response = httpx.get(f"{server.url}/v1/streams/{name}/frame.jpg")
        if response.status_code == 200:
            return response.content
        time.sleep(0.05)
    raise AssertionError(response.text)


def test_a_picture_that_unpacks_to_gigabytes_is_refused_before_it_is_decoded() -> None:
    size = (10_000).to_bytes(4, "big") * 2
    body = b"IHDR" + size + b"\x08\x02\0\0\0"
    header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + body + zlib.crc32(body).to_bytes(4, "big")
    with pytest.raises(PictureError, match="10000×10000 pixels: scale it down"):
        decode_image(header + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big"))


class Shelf(BaseHTTPRequestHandler):
    """Serves a picture, a redirect and a text."""

    def do_GET(self) -> None:
        status, body = {"/a.png": (200, picture()), "/moved": (302, b"")}.get(self.path, (200, b"plain text"))
        self.send_response(status)
        self.send_header("Location", "/a.png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def shelf() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    thread = threading.Thread(target=partial(server.serve_forever, 0.05))
    thread.start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pictures_are_fetched_from_allowed_hosts_only(daemon: Daemon, shelf: str) -> None:
    with daemon.served(server={"media_domains": ["localhost"]}) as server:
        assert completed(server, image(f"{shelf}/a.png")).status_code == 200
        for path in ("/moved", "/text"):
            assert completed(server, image(shelf + path)).json()["error"]["code"] == "url_failed"
        assert completed(server, image("http://localhost:1/a.png")).json()["error"]["code"] == "url_failed"
        assert completed(server, image("http://127.0.0.1:1/a.png")).json()["error"]["code"] == "url_not_allowed"


def test_realtime_item_with_a_picture(server: Served) -> None:
    async def story() -> None:
        async with server.connect() as client:
            parts = [{"type": "input_image", "image_url": uri(picture())}, {"type": "input_text", "text": "What?"}]
            await send(client, "conversation.item.create", item={"type": "message", "role": "user", "content": parts})
            await send(client, "response.create", response={"max_output_tokens": 2})
            response = (await until(client, "response.done"))[-1]["response"]
            assert response["status"] in ("completed", "incomplete")
            assert response["usage"]["input_token_details"]["image_tokens"] > 0
            await send(client, "stream.list")
            assert [each["name"] for each in (await until(client, "stream.listed"))[-1]["streams"]] == ["demo"]

    asyncio.run(story())


def test_frames_are_pushed_as_text_and_binary(server: Served, daemon: Daemon) -> None:
    async def story() -> None:
        async with server.connect() as client:
            await receive(client)
            await send(client, "stream.attach", stream="robot", source="push://robot")
            assert (await receive(client))["type"] == "stream.attached"
            await send(client, "session.update", session={"stream": "robot"})

            def seen() -> int:
                (status,) = [each for each in daemon.do(daemon.assistant.streams) if each.name == "robot"]
                return status.frames_seen

            async def push() -> None:
                for number in range(1000):
                    if number % 2:
                        await client.send(picture("JPEG"))
                    else:
                        video = uri(picture(width=64 + number % 4))
                        await send(client, "input_video_buffer.append", video=video, timestamp=number / 2)
                    await asyncio.sleep(0.02)

            pushing = asyncio.create_task(push())
            await eventually(lambda: seen() >= 4)
            pushing.cancel()
            await send(client, "response.create", response={"instructions": "What?", "max_output_tokens": 1})
            assert (await until(client, "response.done"))[-1]["response"]["output"]
            await send(client, "input_video_buffer.append", video=uri(picture()[:60]), event_id="broken")
            assert (await until(client, "error"))[-1]["error"]["param"] == "video"
            await send(client, "input_video_buffer.append", video=uri(picture()), stream="demo", event_id="other")
            refused = (await until(client, "error"))[-1]["error"]
            assert (refused["code"], refused["event_id"]) == ("bad_source", "other")
            await send(client, "stream.detach", stream="robot")
            await until(client, "stream.detached")

    asyncio.run(story())


def test_questions_that_bring_something_are_limited_as_others(daemon: Daemon) -> None:
    with daemon.served(limits={**CONFIG["limits"], "visitor_questions_per_minute": 1}) as server:
        assert completed(server, image(uri(picture()))).status_code == 200
        assert completed(server, image(uri(picture()))).status_code == 429
