"""The `streamer` command. It starts fast: what is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from streamer.client import DEFAULT_URL, Client, ClientError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 (it failed, one line on stderr) or 2 (wrong usage)."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ClientError as error:
        print(f"streamer: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say, at interpreter exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="streamer", description="Watches live video and answers questions about it.")
    parser.add_argument("--version", action="version", version=f"streamer {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    ask = commands.add_parser("ask", help="ask a running daemon; the answer is shown as it is spoken")
    ask.add_argument("question")
    ask.add_argument("--stream", help="which stream; needed when there are several")
    ask.add_argument("--instructions", help="how to answer")
    ask.add_argument("--max-tokens", type=int, help="longest answer")
    ask.add_argument("--temperature", type=float, help="0 (the default) always takes the likeliest word")
    ask.add_argument("--seed", type=int, help="makes a sampled answer repeatable")
    _reach(ask)
    ask.set_defaults(command=_ask)

    status = commands.add_parser("status", help="one line a stream")
    _reach(status)
    status.set_defaults(command=_status)

    config = commands.add_parser("config", help="look after configuration files")
    config_commands = config.add_subparsers(title="commands", required=True, metavar="COMMAND")
    check = config_commands.add_parser("check", help="say what is wrong with a configuration file")
    check.add_argument("config", metavar="CONFIG.yaml")
    check.add_argument("--json", action="store_true", help="print facts as JSON")
    check.set_defaults(command=_config_check)
    return parser


def _reach(parser: argparse.ArgumentParser) -> None:
    """The options of every command that talks to a running daemon."""
    parser.add_argument("--url", help=f"where the daemon is (default $STREAMER_URL or {DEFAULT_URL})")
    parser.add_argument("--token-file", metavar="FILE", help="file with the bearer token (default: $STREAMER_TOKEN)")
    parser.add_argument("--ca", metavar="FILE", help="certificate to trust, for a daemon with one of its own")
    parser.add_argument("--json", action="store_true", help="print facts as JSON")


def _client(options: argparse.Namespace) -> Client:
    token = None
    try:
        if options.token_file:
            token = Path(options.token_file).read_text(encoding="utf-8").strip()
        tls = ssl.create_default_context(cafile=options.ca) if options.ca else None
    except OSError as error:
        raise ClientError("bad_file", f"{error.filename or options.ca}: {error.strerror or error}.") from None
    return Client(options.url, token=token, tls=tls)


def _ask(options: argparse.Namespace) -> int:
    with _client(options) as client:
        began = time.monotonic()
        first: float | None = None
        words: list[str] = []
        for word in client.ask(
            options.question,
            stream=options.stream,
            instructions=options.instructions,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
        ):
            first = first or time.monotonic() - began
            words.append(word)
            if not options.json:
                print(word, end="", flush=True)
    if options.json:
        facts = {
            "question": options.question,
            "answer": "".join(words),
            "first_word_s": None if first is None else round(first, 4),
            "answer_s": round(time.monotonic() - began, 4),
        }
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print()
    return 0


def _status(options: argparse.Namespace) -> int:
    with _client(options) as client:
        streams = client.streams()
    if options.json:
        print(json.dumps({"streams": streams}, ensure_ascii=False))
    elif not streams:
        print("no streams")
    else:
        for line in status_lines(streams):
            print(line)
    return 0


def status_lines(streams: Sequence[dict[str, Any]]) -> list[str]:
    """A head and one line a stream, in columns."""
    head = ("STREAM", "STATE", "FPS IN", "FPS SEEN", "DROPS", "LAG", "NEWEST", "UPTIME", "SOURCE")
    rows = [head]
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
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


def _config_check(options: argparse.Namespace) -> int:
    from streamer.config import ConfigError, load_config

    try:
        config = load_config(options.config)
    except ConfigError as error:
        if options.json:
            print(json.dumps({"ok": False, "problems": error.problems}, ensure_ascii=False))
        else:
            print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"ok": True, "streams": [stream.name for stream in config.streams]}, ensure_ascii=False))
    else:
        names = ", ".join(stream.name for stream in config.streams) or "none"
        print(f"{options.config}: good; model {config.model.name}, streams: {names}")
    return 0


def _version() -> str:
    try:
        return version("streamer")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
