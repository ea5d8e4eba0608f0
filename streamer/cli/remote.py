"""The commands that talk to a running daemon: ask, status, stream, timeline and forget."""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

from streamer.client import DEFAULT_URL, Client, ClientError
from streamer.wire import fetch

T = TypeVar("T")
LOADING_SECONDS, TRY_SECONDS = 900.0, 0.5
"""How long a question waits for a model that is being loaded, and how often it is asked meanwhile."""

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
OVER = "\r\033[K"
"""Writes over what stands on a terminal's line."""


def reach(parser: argparse.ArgumentParser) -> None:
    """The options of every command that talks to a running daemon."""
    parser.add_argument("--url", help=f"where the daemon is (default $STREAMER_URL or {DEFAULT_URL})")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token (default: $STREAMER_TOKEN)")
    parser.add_argument("--ca", metavar="FILE", help="certificate to trust, for a daemon with one of its own")
    parser.add_argument(
        "--wait", type=seconds, default=0.0, metavar="TIME", help="wait so long for a daemon that is only being started"
    )
    parser.add_argument("--json", action="store_true", help="print facts as JSON")


def seconds(text: str) -> float:
    """A time as people write it: 90, 10m, 2h."""
    written = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if written is None or (written[2] or "s") not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write such as 90, 10m or 2h")
    return float(written[1]) * UNITS[written[2] or "s"]


def _token(options: argparse.Namespace) -> str | None:
    try:
        return Path(options.token_file).read_text(encoding="utf-8").strip() if options.token_file else None
    except OSError as error:
        raise ClientError("bad_file", f"{error.filename}: {error.strerror or error}.") from None


def _tls(options: argparse.Namespace) -> ssl.SSLContext | None:
    try:
        return ssl.create_default_context(cafile=options.ca) if options.ca else None
    except OSError as error:
        raise ClientError("bad_file", f"{error.filename or options.ca}: {error.strerror or error}.") from None


@contextmanager
def _client(options: argparse.Namespace) -> Iterator[Client]:
    token, tls = _token(options), _tls(options)
    with ExitStack() as stack:
        yield waited(lambda: stack.enter_context(Client(options.url, token=token, tls=tls)), options.wait)


def ask(options: argparse.Namespace) -> int:
    with _client(options) as client:
        began = time.monotonic()
        first: float | None = None
        words: list[str] = []
        moment: dict[str, Any] = {}
        for word in _answer(client, options, moment):
            if moment and not words and not options.json:
                print(f"{OVER if sys.stderr.isatty() else ''}[{_reached(moment)}]", file=sys.stderr)
            first = first or time.monotonic() - began
            words.append(word)
            if not options.json:
                print(printable(word, "\n\t"), end="", flush=True)
    if options.json:
        facts = {
            "question": options.question,
            "answer": "".join(words),
            "first_word_s": None if first is None else round(first, 4),
            "answer_s": round(time.monotonic() - began, 4),
            **({"moment": moment} if moment else {}),
        }
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print()
    return 0


class Patience:
    """Waits, with a line, for a daemon whose model is still being loaded; `wait` seconds for one that is not there yet."""

    def __init__(self, wait: float = 0.0) -> None:
        now = time.monotonic()
        self._waiting, self._end, self._there = False, now + LOADING_SECONDS, now + wait

    def bear(self, error: ClientError) -> None:
        """Returns when it is time to try again. Raises the error where that does not help."""
        # Right after the model, the streams' first frames are still to come.
        soon = error.code == "not_ready" or (self._waiting and error.code == "no_frames")
        now = time.monotonic()
        if not ((soon and now < self._end) or (error.code == "unreachable" and now < self._there)):
            raise error
        if not self._waiting:
            why = error.message.partition(": ")[0]
            print(f"streamer: {why[0].lower()}{why[1:]}: waiting", file=sys.stderr, flush=True)
        self._waiting = True
        time.sleep(TRY_SECONDS)


def waited(do: Callable[[], T], wait: float = 0.0) -> T:
    """What `do` returns, once the model is loaded, and the daemon there within so many seconds. Raises ClientError."""
    patience = Patience(wait)
    while True:
        try:
            return do()
        except ClientError as error:
            patience.bear(error)


def _answer(client: Client, options: argparse.Namespace, moment: dict[str, Any]) -> Iterator[str]:
    """The answer's words; waits for a model that is still being loaded. Fills in the `moment` of the past."""
    patience = Patience()
    while True:
        try:
            yield from client.ask(
                options.question,
                stream=options.stream,
                instructions=options.instructions,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                seed=options.seed,
                at=options.at,
                since=options.since,
                until=options.until,
                moment=moment.update,
                progress=_replaying,
            )
            return
        except ClientError as error:
            patience.bear(error)


def _reached(moment: Mapping[str, Any]) -> str:
    """Which moment or span of the past an answer speaks of, and how that was reached."""
    if "frames" not in moment:
        return f"{moment['reached']}, {moment['how']}, {moment['before_s']:.1f} s before"
    missing = f", {moment['missing_s']:.0f} s are not recorded" if moment["how"] != "replayed" else ""
    return f"{moment['from']} to {moment['reached']}, {moment['how']}: {moment['frames']} frames{missing}"


def _replaying(shown: int, of: int) -> None:
    """Tells how far the past has been shown, on a line that is written over, where somebody sees it."""
    if sys.stderr.isatty():
        print(f"{OVER}showing it again: {100 * shown // of} %", end="", file=sys.stderr, flush=True)


def web(
    options: argparse.Namespace,
    path: str,
    query: Mapping[str, Any] = MappingProxyType({}),
    method: str = "GET",
    body: Mapping[str, Any] | None = None,
) -> Any:
    """What the daemon says over HTTP, for what is no matter of a conversation; of `query`, what is None is left out.

    `body` goes along as JSON. Waits as `waited` does. Raises ClientError.
    """
    return waited(lambda: _web(options, path, query, method, body), options.wait)


def _web(
    options: argparse.Namespace, path: str, query: Mapping[str, Any], method: str, body: Mapping[str, Any] | None
) -> Any:
    url = options.url or os.environ.get("STREAMER_URL") or DEFAULT_URL
    token = _token(options) or os.environ.get("STREAMER_TOKEN")
    return json.loads(fetch(url, path, query, token=token, tls=_tls(options), method=method, body=body) or b"null")


def forget(options: argparse.Namespace) -> int:
    if options.name is None:
        return _held(options)
    chosen = {"from": options.since, "to": options.until, "keep_memory": "true" if options.keep_memory else None}
    gone = web(options, f"streams/{quote(options.name, safe='')}/memory", chosen, "DELETE")
    if options.json:
        print(json.dumps(gone, ensure_ascii=False))
    else:
        print(
            f"{options.name}: {gone['snapshots']} snapshots, {gone['segments']} recordings of {gone['recorded_s']:.0f} s, "
            f"{gone['entries']} entries of the timeline and {gone['indexes']} indexes are gone; "
            f"of memory remains {gone['memory']}"
        )
    return 0


def _held(options: argparse.Namespace) -> int:
    """What is kept of streams, one line each."""
    if options.since or options.until or options.keep_memory:
        raise ClientError("bad_option", "Which stream is meant? Name the one that is to be forgotten.")
    found = web(options, "memory", {})["streams"]
    if options.json:
        print(json.dumps({"streams": found}, ensure_ascii=False))
    for each in () if options.json else found:
        newest = (
            ""
            if each["newest"] is None
            else time.strftime(", newest %Y-%m-%d %H:%M:%S", time.localtime(each["newest"]))
        )
        print(
            f"{each['name']}{'' if each['watched'] else ' (watched no more)'}: {each['snapshots']} snapshots{newest}, "
            f"{each['recorded_s']:.0f} s recorded, {each['bytes'] / 1e6:.1f} MB, {each['entries']} entries of the timeline"
        )
    return 0


def timeline(options: argparse.Namespace) -> int:
    """One stream's entries or all streams', the oldest first as a log has them."""
    names = [options.name] if options.name else [each["name"] for each in web(options, "streams", {})["streams"]]
    chosen = {
        "from": options.since,
        "to": options.until,
        "search": options.search,
        "kind": options.kind,
        "limit": options.limit,
    }
    found = [
        entry for name in names for entry in web(options, f"streams/{quote(name, safe='')}/timeline", chosen)["entries"]
    ]
    shown = sorted(found, key=lambda entry: entry["id"])[-options.limit :]
    if options.json:
        print(json.dumps({"entries": shown}, ensure_ascii=False))
    for entry in () if options.json else shown:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["wall"]))
        print(f"{when}  {entry['stream']}  {entry['kind']}  {_line(entry['text'])}")
    if not shown and not options.json:
        print("no entries")
    return 0


def printable(text: str, but: str = "") -> str:
    """Text of others with nothing in it that a terminal would obey, `but` some signs."""
    return "".join(sign if sign.isprintable() or sign in but else " " for sign in text)


def _line(text: str) -> str:
    return " ".join(printable(text).split())


def status(options: argparse.Namespace) -> int:
    with _client(options) as client:
        streams = waited(client.streams)
    outputs = _outputs(options)
    if options.json:
        print(json.dumps({"streams": streams, "outputs": outputs}, ensure_ascii=False))
        return 0
    print("\n".join(status_lines(streams)) if streams else "no streams")
    if outputs:
        print("", *output_lines(outputs), sep="\n")
    return 0


def _outputs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The outputs' figures; none where the token may not see them."""
    try:
        outputs: list[dict[str, Any]] = web(options, "outputs", {})["outputs"]
    except ClientError as error:
        if error.code != "forbidden":
            raise
        return []
    return outputs


def stream_add(options: argparse.Namespace) -> int:
    chosen = {"fps": options.fps, "loop": options.loop or None, **dict(options.set)}
    with _client(options) as client:
        given = {key: value for key, value in chosen.items() if value is not None}
        added = waited(lambda: client.attach(options.name, here(options.source), **given))
    print(json.dumps(added, ensure_ascii=False) if options.json else f"{options.name} is {added['state']}")
    return 0


def here(source: str) -> str:
    """A file's path as the daemon finds it, whatever folder it runs in; any other source as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def setting(text: str) -> tuple[str, Any]:
    """A key and its value, which is JSON or else the text itself."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE: write such as policy=every")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def stream_remove(options: argparse.Namespace) -> int:
    with _client(options) as client:
        waited(lambda: client.detach(options.name))
    print(json.dumps({"removed": options.name}, ensure_ascii=False) if options.json else f"{options.name} is removed")
    return 0


def status_lines(streams: Sequence[dict[str, Any]]) -> list[str]:
    """A head and one line a stream, in columns."""
    rows = [("STREAM", "STATE", "FPS IN", "FPS SEEN", "DROPS", "LAG", "NEWEST", "UPTIME", "SOURCE")]
    for stream in streams:
        drops = stream["drops"]
        told = ", ".join(f"{reason} {count}" for reason, count in drops.items() if count)
        state = stream["state"] + (f" ({stream['reason']})" if stream["reason"] else "")
        rows.append(
            (
                stream["name"],
                state,
                f"{stream['fps_in']:.1f}",
                f"{stream['fps_seen']:.1f}",
                told or "0",
                _seconds(stream["lag_s"]),
                _seconds(stream["newest_frame_age_s"]),
                _duration(stream["uptime_s"]),
                stream["source"],
            )
        )
    return columns(rows)


def output_lines(outputs: Sequence[dict[str, Any]]) -> list[str]:
    """A head and one line an output, in columns."""
    rows = [("OUTPUT", "KIND", "WAITING", "OLDEST", "DELIVERED", "THROWN AWAY", "STATE", "ADDRESS")]
    for output in outputs:
        discarded = ", ".join(f"{reason} {count}" for reason, count in output["discarded"].items() if count)
        state = "ok" if output["trouble"] is None else f"again in {output['retry_s']:.0f} s: {output['trouble']}"
        waiting, delivered = str(output["waiting"]), str(output["delivered"])
        oldest = _seconds(output["oldest_s"])
        rows.append(
            (output["name"], output["kind"], waiting, oldest, delivered, discarded or "0", state, output["address"])
        )
    return columns(rows)


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns, a line each, with nothing in them that a terminal would obey."""
    rows = [tuple(map(_line, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else _duration(value)


def _duration(seconds: float) -> str:
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
