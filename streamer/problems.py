"""What is wrong with a configuration, or with a section of one that a client sends: a line each, with path, value and mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from protocols.fields import SHOULD
from streamer.fields import NAME_MEND

MOST_TOLD = 50
"""Of problems: nobody reads more, and a stranger can send twenty thousand."""
COUNTED = re.compile(r"_tokens(_per_second)?$")
"""Keys of numbers of the model's tokens, which are no secrets."""


def problems(error: ValidationError, section: type[BaseModel]) -> list[str]:
    """A line for each of pydantic's errors in a section, and how many are left out."""
    errors = list(islice(error.errors(include_url=False), MOST_TOLD))
    # A list is not too short where pydantic only left its wrong entries out.
    wrong = {each["loc"][:-1] for each in errors}
    told = [_problem(each, section) for each in errors if each["type"] != "too_short" or each["loc"] not in wrong]
    left = error.error_count() - len(errors)
    return [*told, f"and {left} more"] if left else told


def short(text: str) -> str:
    """As much of a text as a line has room for."""
    return text if len(text) <= 80 else text[:77] + "..."


def _key(part: str) -> str:
    """A key as it is written, or quoted where it would break or empty the line."""
    return short(part if part.strip() and part.isprintable() else repr(part))


def _close(text: str, known: Collection[str]) -> list[str]:
    """What of `known` is spelt like a text, which a stranger may have made long."""
    return difflib.get_close_matches(text, known, n=1, cutoff=0.5) if len(text) <= 80 else []


def _problem(error: ErrorDetails, section: type[BaseModel]) -> str:
    """One line for one of pydantic's errors: path, value, mend."""
    from capture.redaction import redact  # here, as capture takes long to import and few configurations are wrong

    place = error["loc"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in place).lstrip(".")
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    shown = short(redact(repr(value)))
    last = f"{place[-1] if place else ''}"
    counted = kind != "extra_forbidden" and COUNTED.search(last)
    if not counted and f"{last}=value" != redact(f"{last}=value"):
        shown = "what it holds"  # a secret
    if kind == "extra_forbidden":
        known = _keys(section, place[:-1])
        close = _close(str(place[-1]), known)
        mend = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{path}: unknown key (value {shown}); {mend}"
    if kind == "missing":
        return f"{path}: is missing; add it"
    if kind == "value_error":
        reason = str(context["error"])
        return f"{path}: {shown} {reason}" if path and not isinstance(value, dict) else f"{path}: {reason}".lstrip(": ")
    limits = {
        "greater_than": "more than",
        "less_than": "less than",
        "greater_than_equal": "at least",
        "less_than_equal": "at most",
    }
    if kind in limits:
        limit = next(value for name, value in context.items() if name in ("gt", "ge", "lt", "le"))
        return f"{path}: {shown} is out of range; it must be {limits[kind]} {limit:g}"
    if kind == "literal_error":
        expected = context["expected"]
        close = _close(str(value), re.findall(r"'([^']+)'", expected))
        return f"{path}: {shown} is not one of {expected}" + (f"; did you mean {close[0]!r}?" if close else "")
    if kind == "string_pattern_mismatch" and place[-1] == "digest":
        return f"{path}: is no digest of a token; write sha256: and 64 hexadecimal digits, as 'streamer token' prints"
    if kind == "string_pattern_mismatch" and "origins" in place:
        return f"{path}: {shown} is no origin; write a scheme and a host, such as https://cam.example"
    if kind == "string_pattern_mismatch":
        return f"{path}: {shown} is no name; {NAME_MEND}"
    if kind in ("model_type", "model_attributes_type"):
        return f"{path}: {shown} is not a section; write keys under it".removeprefix(": ")
    if kind in ("tuple_type", "list_type"):
        return f"{path}: {shown} is not a list; write one entry a line, each behind '- '"
    if kind in ("bool_type", "bool_parsing"):
        return f"{path}: {shown} is neither true nor false; write one of them"
    if kind == "string_type":
        return f"{path}: {shown} is no text; write it in quotes"
    if kind == "finite_number":
        return f"{path}: {shown} is not finite; write a plain number"
    if kind in ("too_short", "string_too_short"):
        return f"{path}: {shown} is too short; write at least {_counted(context['min_length'], value)}"
    if kind in ("too_long", "string_too_long"):
        return f"{path}: {shown} is too long; write at most {_counted(context['max_length'], value)}"
    return f"{path}: {shown} {SHOULD.sub('must ', error['msg'])}"


def _counted(length: int, value: object) -> str:
    """So many of what a value is made of."""
    one, several = ("character", "characters") if isinstance(value, str) else ("entry", "entries")
    return f"{length} {one if length == 1 else several}"


def _keys(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys known at a place in a section."""
    for part in location:
        if isinstance(part, str):
            section = _section(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, in a list or alone, or may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)
