"""Fields of untrusted JSON: their types, and how a wrong one is refused by its path."""

from __future__ import annotations

import base64
import binascii
import json
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""The first bytes of JPEG, PNG, GIF and TIFF."""
BLANK = " \t\r\n\ufeff"
"""What people's programs leave before a picture."""
PICTURE_BRANDS = frozenset({b"avif", b"avis"})
MOST_MARKS = 20_000
"""Of a message: commas, colons and brackets, in its texts too."""
_SHORT = reprlib.Repr()
"""Shows of a value no more than a line takes, whatever it holds."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 57, 57, 57
URL_SAFE = bytes.maketrans(b"-_", b"+/")
URL_ESCAPES = tuple(
    (f"%{case(f'{ord(each):02x}')}", each) for each in "+/=-_ \t\r\n" for case in (str.upper, str.lower)
)
"""What base64 can hold that is escaped in a URL; to undo all that could be would take long."""


SHOULD = re.compile(r"^[A-Z][a-z]+ should ")
"""How pydantic begins to say what a value must be, of which it names the kind."""
ITEMS = re.compile(r" item(s?)$")
"""What it counts, in texts too."""


class ProtocolError(ValueError):
    """A message that is refused; becomes an `error` event.

    Attributes:
        code: machine-readable reason.
        param: path of the offending field, or None.
        event_id: the client's own id for the event, or None.
    """

    def __init__(self, code: str, message: str, param: str | None = None, event_id: str | None = None) -> None:
        self.code, self.message, self.param, self.event_id = code, message, param, event_id
        super().__init__(message)


def picture_bytes(text: str) -> bytes:
    """The picture's file in a data URI or in plain base64. Raises ValueError with the mend."""
    text = text.lstrip(BLANK)
    if text[:5].lower() == "data:":
        return picture_file(uri_bytes(text, "image/jpeg"))
    if text[:8].lower().startswith(("http://", "https://")):
        raise ValueError("must carry the picture itself as a data URI: data:image/jpeg;base64,...")
    return picture_file(base64_bytes(text))


def uri_bytes(text: str, example: str) -> bytes:
    """The bytes in a base64 data URI (RFC 2397), whose head may be in capitals. Raises ValueError that shows an `example`'s."""
    head, comma, body = text.partition(",")
    if not comma or not head.replace(" ", "").lower().endswith(";base64"):
        raise ValueError(f"must be a base64 data URI: data:{example};base64,...")
    for escaped, character in URL_ESCAPES if "%" in body else ():
        body = body.replace(escaped, character)
    return base64_bytes(body)


def base64_bytes(text: str) -> bytes:
    """The bytes in base64 as people send it: with line breaks, without padding, or of the alphabet for URLs. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        letters = text.encode("ascii").translate(URL_SAFE, b" \t\n\r\v\f").rstrip(b"=")
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not valid base64") from None


def picture_file(data: bytes) -> bytes:
    """`data`, without blanks before it, if it begins like a picture of a kind that is decoded. Raises ValueError."""
    data = data.lstrip(BLANK.encode()[:4])
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4]), 64), 4))}
    if data[4:8] == b"ftyp" and brands & PICTURE_BRANDS:
        return data
    if data.startswith(PICTURE_STARTS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        return data
    raise ValueError("is neither a JPEG nor a PNG picture, nor WebP, GIF, AVIF or TIFF")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a client sent it, a data URI or base64, and the file in it, decoded once."""

    text: str
    data: bytes


def read_picture(value: Any) -> Picture:
    """A picture in a message. Raises ValueError."""
    if isinstance(value, Picture):
        return value
    if not isinstance(value, str):
        raise ValueError("must be a string: a data URI or base64")
    return Picture(_storable(value), picture_bytes(value))


def number(value: Any) -> Any:
    """A plain number of whatever kind of number it is (numpy's come from Python), as strict models want it. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def seeded(value: Any) -> Any:
    """A seed; -1 means none, as other servers have it."""
    value = number(value)
    return None if value == -1 else value


def _storable(text: str) -> str:
    """Refuses lone surrogates: JSON can spell them and UTF-8 cannot carry them back."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


Text = Annotated[str, AfterValidator(_storable)]
Moment = Annotated[Text, Field(max_length=64)]
"""A moment of the past as people write it; what is known, and that none is empty, is the daemon's matter."""
StreamName = Annotated[Text, Field(min_length=1, max_length=64)]
ItemId = Annotated[Text, Field(min_length=1, max_length=64)]
Tokens = Annotated[int, Field(ge=1, le=32_768), BeforeValidator(number)] | Literal["inf"]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False), BeforeValidator(number)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), BeforeValidator(number)]
Seed = Annotated[Annotated[int, Field(ge=0, lt=2**63)] | None, BeforeValidator(seeded)]


def only(*harmless: Any, why: str) -> BeforeValidator:
    """For a key of which nothing but `harmless` values can be done: they count as None, others are refused with `why`."""

    def check(value: Any) -> None:
        if value is not None and value not in harmless:
            raise ValueError(why)

    return BeforeValidator(check)


Modalities = Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
]


class Model(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


def read_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object from the wire, of a bounded number of values; a picture is one, however large. Raises ProtocolError."""
    # Counted before they are parsed: by the marks before each, which what is written in base64 has none of.
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if sum(map(data.count, (b",", b":", b"[", b"{"))) > MOST_MARKS:
        raise ProtocolError("invalid_json", f"The message holds more than {MOST_MARKS} values and keys.")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("invalid_json", f"The message is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise ProtocolError("invalid_event", f"A message is a JSON object, not {type(data).__name__}.")
    return data


def refusal(
    error: ValidationError | Sequence[ErrorDetails], data: Any, event_id: str | None = None, within: str = ""
) -> ProtocolError:
    """What is wrong with `data`, as the client is told it: the first error among the deepest.

    A union reports every branch; the branch that was meant is the one that got farthest. Paths are told `within` another.
    """
    details = error.errors(include_url=False) if isinstance(error, ValidationError) else error
    first = max(details, key=lambda each: len(each["loc"]))
    path = within + _field_path(first, data)
    missing = first["type"] in ("missing", "union_tag_not_found")
    code = "missing_required_parameter" if missing else "invalid_value"
    return ProtocolError(code, _message(first, path), path, event_id)


def _field_path(error: ErrorDetails, data: Any) -> str:
    """`item.content[0].text`: pydantic's location without the names it puts in for the branches of unions."""
    path = ""
    last = len(error["loc"]) - 1
    for place, part in enumerate(error["loc"]):
        if isinstance(part, int):
            path += f"[{part}]"
            data = data[part] if isinstance(data, list) and part < len(data) else None
        elif (isinstance(data, dict) and part in data) or (error["type"] == "missing" and place == last):
            path += f".{part}" if path else part
            data = data.get(part) if isinstance(data, dict) else None
    return path


def _message(error: ErrorDetails, path: str) -> str:
    shown = _SHORT.repr(error["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    if error["type"] == "missing":
        return f"Missing required parameter: '{path}'."
    if error["type"] == "union_tag_not_found":
        return f"Missing required parameter: '{path}.type'."
    if error["type"] == "union_tag_invalid":
        return f"Invalid value for '{path}.type': {error['ctx']['tag']!r}; use {error['ctx']['expected_tags']}."
    if "modalities" in path:
        return f"Invalid value for '{path}': {shown}; answers are text only: use ['text']."
    if error["type"] == "value_error":
        return f"Invalid value for '{path}': it {error['ctx']['error']}."
    wanted = SHOULD.sub("it must ", error["msg"]).partition(" after validation")[0]
    if isinstance(error["input"], str):
        wanted = ITEMS.sub(r" character\1", wanted)
    return f"Invalid value for '{path}': {shown}; {wanted}."
