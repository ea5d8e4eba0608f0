"""Pictures on the wire, spelled as people's programs spell them."""

import base64
import time

import numpy as np
import pytest
from pydantic import ValidationError

from protocols.fields import picture_bytes, picture_file
from protocols.question import Sampling
from protocols.realtime.session import Push
from tests.protocols.test_chat import read
from tests.protocols.test_realtime import Talk

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(252))
PLAIN = base64.b64encode(JPEG).decode()
SPELLINGS = [
    f"data:image/jpeg;base64,{PLAIN}",
    f"data:IMAGE/JPEG;BASE64,{PLAIN}",
    f"DATA:image/jpeg;charset=utf-8;base64,{PLAIN}",
    f"data:image/jpeg;base64, {PLAIN}\n",
    "data:image/jpeg;base64," + base64.encodebytes(JPEG).decode(),
    "data:image/jpeg;base64," + base64.encodebytes(JPEG).decode().replace("\n", "\r\n "),
    "data:image/jpeg;base64," + PLAIN.rstrip("="),
    "data:image/jpeg;base64," + base64.urlsafe_b64encode(JPEG).decode(),
    "data:image/jpeg;base64," + PLAIN.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    PLAIN,
    PLAIN.rstrip("="),
    f"\ufeff\r\n data:image/jpeg; base64,{PLAIN}",
    "data:image/jpeg;base64," + base64.b64encode(b"\r\n" + JPEG).decode(),
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_picture_is_read_however_its_base64_is_spelled(text: str) -> None:
    assert PLAIN.endswith("=") and "+" in PLAIN and "/" in PLAIN
    assert picture_bytes(text) == JPEG
    if text[:5].lower() == "data:":
        parts = [{"type": "image_url", "image_url": {"url": text}}, {"type": "text", "text": "What?"}]
        asked = read([{"role": "user", "content": parts}])
        assert asked.question.attachments[0].data == JPEG
    assert Talk(stream="door").say("input_video_buffer.append", video=text) == [Push("door", JPEG)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data:image/jpeg;base64," + PLAIN[:-2] + "!", "not valid base64"),
        ("data:image/jpeg;base64,A", "not valid base64"),
        ("data:image/jpeg," + PLAIN, "must be a base64 data URI"),
        ("data:image/jpeg;base64", "must be a base64 data URI"),
        ("HTTPS://example.org/a.jpg", "must carry the picture itself"),
        (base64.b64encode(b"%PDF-1.7").decode(), "neither a JPEG nor a PNG"),
        (base64.b64encode(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom").decode(), "neither a JPEG nor a PNG"),
    ],
)
def test_what_is_no_picture_is_refused_by_what_it_is(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        picture_bytes(text)


@pytest.mark.parametrize(
    "start",
    [
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\0\0\0WEBP",
        b"GIF89a",
        b"II*\0",
        b"\0\0\0\x1cftypavif\0\0\0\0",
        b"\0\0\0\x1cftypmif1\0\0\0\0miafavif",
    ],
)
def test_every_kind_that_is_decoded_passes(start: bytes) -> None:
    assert picture_file(start + bytes(64)) == start + bytes(64)


def test_a_megabyte_of_anything_is_read_or_refused_at_once() -> None:
    for text in ("data:image/jpeg;base64," + "A \n" * 350_000, "%" * 2**20, "data:" + "%3D" * 350_000, "=" * 2**20):
        took = []
        for _ in range(3):
            began = time.thread_time()
            with pytest.raises(ValueError):
                picture_bytes(text)
            took.append(time.thread_time() - began)
        assert min(took) < 0.3


def test_numpys_numbers_are_numbers() -> None:
    chosen = Sampling.model_validate({"seed": np.int64(7), "top_k": np.uint8(3), "temperature": np.float32(0.5)})
    assert chosen == Sampling(seed=7, top_k=3, temperature=0.5)
    assert type(chosen.seed) is int and type(chosen.temperature) is float
    with pytest.raises(ValidationError):
        Sampling.model_validate({"seed": np.float64(7.5)})
