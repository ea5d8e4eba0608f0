"""The `streamer` command. It starts fast: what is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamer.cli.bench import add_arguments as bench_arguments
from streamer.cli.eval import add_arguments as evaluation_arguments
from streamer.client import DEFAULT_URL, Client, ClientError

if TYPE_CHECKING:
    from streamer.config import Config

KINDS = ("a video file", "demo:", "rtsp://…", "rtmp://…", "http(s)://… (HLS, MJPEG)", "push://NAME", "whip://NAME")
"""What `--source` takes beside local cameras."""
FIRST_QUESTION_AFTER = 2.0
"""Seconds that a stream is watched before `--ask` asks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 (it failed, one line on stderr) or 2 (wrong usage)."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ClientError as error:
        print(f"streamer: {error.message}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if find_spec("torch") is not None:
            raise
        print(
            f"streamer: {error.name} is not installed, only the client is: install streamer[daemon]",
            file=sys.stderr,
        )
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

    run = commands.add_parser("run", help="start the daemon")
    run.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="configuration file")
    run.add_argument(
        "--source", action="append", default=[], help="video to watch: file, rtsp://…, demo:, or a configuration file"
    )
    run.add_argument("--name", action="append", default=[], help="name of the stream, for each --source in turn")
    run.add_argument("--loop", action="store_true", help="play files again and again")
    run.add_argument("--model", help="nano, 4b, a folder or a Hugging Face repository")
    run.add_argument("--host", help="address to listen at (default 127.0.0.1)")
    run.add_argument("--port", type=int, help="port to listen at (default 8765, 0 for any)")
    run.add_argument("--certificate", metavar="FILE", help="TLS certificate with its chain, PEM")
    run.add_argument("--key", metavar="FILE", help="TLS key, PEM")
    run.add_argument("--token-file", metavar="FILE", help="tokens that may come in: NAME SCOPES TOKEN a line")
    run.add_argument(
        "--insecure", action="count", default=0, help="said twice: listen to others without tokens or without TLS"
    )
    run.add_argument("--ask", metavar="QUESTION", help="ask this once the first stream is live")
    run.set_defaults(command=_run)

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

    stream = commands.add_parser("stream", help="add, remove and list the streams of a running daemon")
    stream_commands = stream.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = stream_commands.add_parser("add", help="watch one more source")
    add.add_argument("name")
    add.add_argument("source")
    add.add_argument("--fps", type=float, help="see at most this many frames a second")
    add.add_argument("--loop", action="store_true", help="play a file again and again")
    add.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help="any other key of a configured stream, such as policy=every, change=4 or transport=udp; may be said again",
    )
    _reach(add)
    add.set_defaults(command=_stream_add)
    remove = stream_commands.add_parser("remove", help="stop watching, and forget what was seen")
    remove.add_argument("name")
    _reach(remove)
    remove.set_defaults(command=_stream_remove)
    listed = stream_commands.add_parser("list", help="as 'streamer status'")
    _reach(listed)
    listed.set_defaults(command=_status)

    token = commands.add_parser("token", help="make a bearer token")
    token.add_argument("name", help="whose token it is")
    token.add_argument("--scopes", default="view,ask", help="of view, ask, publish, admin (default view,ask)")
    token.add_argument("--json", action="store_true", help="print facts as JSON")
    token.set_defaults(command=_token)

    bench = commands.add_parser("bench", help="measure the daemon on this machine")
    bench_arguments(bench)
    bench.set_defaults(command=_bench)

    evaluation = commands.add_parser("eval", help="examine a model: how often it is right, skill by skill")
    evaluation_arguments(evaluation)
    evaluation.set_defaults(command=_eval)

    sources = commands.add_parser("sources", help="list the cameras of this machine and the kinds of source there are")
    sources.add_argument("--json", action="store_true", help="print facts as JSON")
    sources.set_defaults(command=_sources)

    doctor = commands.add_parser("doctor", help="say what works on this machine, and what to mend")
    doctor.add_argument("--host", default="127.0.0.1", help="address that the daemon is to listen at")
    doctor.add_argument("--port", type=int, default=8765, help="its port")
    doctor.add_argument("--json", action="store_true", help="print facts as JSON")
    doctor.set_defaults(command=_doctor)

    completion = commands.add_parser("completion", help="print a script that completes commands in your shell")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(command=_completion)

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


def _stream_add(options: argparse.Namespace) -> int:
    chosen = {"fps": options.fps, "loop": options.loop or None, **dict(options.set)}
    with _client(options) as client:
        added = client.attach(
            options.name, options.source, **{key: value for key, value in chosen.items() if value is not None}
        )
    print(json.dumps(added, ensure_ascii=False) if options.json else f"{options.name} is {added['state']}")
    return 0


def _setting(text: str) -> tuple[str, Any]:
    """A key and its value, which is JSON or else the text itself."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE: write such as policy=every")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def _stream_remove(options: argparse.Namespace) -> int:
    with _client(options) as client:
        client.detach(options.name)
    print(json.dumps({"removed": options.name}, ensure_ascii=False) if options.json else f"{options.name} is removed")
    return 0


def _token(options: argparse.Namespace) -> int:
    from streamer.config import NAME, NAME_MEND
    from streamer.server.auth import new_token, read_scopes, token_digest

    try:
        scopes = [scope for scope in options.scopes.split(",") if read_scopes(scope)]
    except ValueError as error:
        print(f"streamer token: {error}", file=sys.stderr)
        return 2
    if not re.fullmatch(NAME, options.name):
        print(f"streamer token: {options.name!r} is no name; {NAME_MEND}", file=sys.stderr)
        return 2
    token = new_token()
    kept = {"name": options.name, "scopes": scopes, "digest": f"sha256:{token_digest(token)}"}
    if options.json:
        print(json.dumps({"token": token, **kept}))
    else:
        print(f"{token}\n\nIt is shown this once. In the configuration, under server.tokens:")
        print(f"  - {{name: {kept['name']}, scopes: [{', '.join(scopes)}], digest: '{kept['digest']}'}}")
        print(f"or as a line of a --token-file:\n  {options.name} {','.join(scopes)} {kept['digest']}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from streamer.cli.bench import run

    return run(options)


def _eval(options: argparse.Namespace) -> int:
    from streamer.cli.eval import run

    return run(options)


def _sources(options: argparse.Namespace) -> int:
    from capture import list_cameras

    cameras = list_cameras()
    if options.json:
        print(json.dumps({"cameras": [{"source": url, "name": name} for url, name in cameras], "kinds": list(KINDS)}))
        return 0
    for url, name in cameras:
        print(f"{url}  {name}")
    print("" if cameras else "no local camera is attached", end="" if cameras else "\n")
    print(f"Also: {', '.join(KINDS)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from streamer.cli.doctor import run

    return run(options)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(_parser(), options.shell))
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
        _refuse_what_can_not_run(config, options.config)
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


def _refuse_what_can_not_run(config: Config, origin: str) -> None:
    """Raises ConfigError for what `streamer run` would refuse: tokens, certificates and sources."""
    from capture import SourceError
    from streamer.config import ConfigError
    from streamer.engine.stream import configured_source
    from streamer.server.tokens import known_tokens, signed_tokens

    problems: list[str] = []
    for read in (known_tokens, signed_tokens):
        try:
            read(config)
        except ConfigError as error:
            problems += error.problems
    for index, stream in enumerate(config.streams):
        try:
            configured_source(stream, config.webrtc)
        except SourceError as error:
            problems.append(f"streams[{index}].source: {error}")
    if problems:
        raise ConfigError(problems, origin)


def _run(options: argparse.Namespace) -> int:
    from streamer.config import ConfigError

    try:
        config = run_config(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    from streamer.daemon import run

    def announce(url: str) -> None:
        for stream in config.streams:
            if stream.source == "demo:":
                print("\n".join(demo_questions(stream.name, url)), flush=True)
        if options.ask:
            threading.Thread(target=_first_question, args=(url, options.ask), daemon=True).start()

    return run(config, announce, lambda: run_config(options))


def run_config(options: argparse.Namespace) -> Config:
    """The configuration that `streamer run` was asked for: a file's, with what the options say on top.

    Raises:
        ConfigError: a value is wrong.
    """
    from streamer.config import ConfigError, load_config, parse_config

    files = [source for source in options.source if source.endswith((".yaml", ".yml"))]
    files += [options.config] if options.config else []
    if len(files) > 1:
        raise ConfigError([f"{len(files)} configuration files: name one"], "streamer run")
    data = load_config(files[0]).model_dump(mode="json", exclude_unset=True) if files else {}
    sources = [source for source in options.source if source not in files]
    if len(options.name) > len(sources):
        raise ConfigError([f"--name {options.name[-1]}: has no --source beside it"], "streamer run")
    streams = list(data.get("streams", []))
    taken = {stream["name"] for stream in streams}
    for index, source in enumerate(sources):
        name = options.name[index] if index < len(options.name) else _stream_name(source, taken)
        taken.add(name)
        streams.append({"name": name, "source": source, **({"loop": True} if options.loop else {})})
    if not streams and not files:
        streams = [{"name": "demo", "source": "demo:"}]
    data["streams"] = streams
    if options.model is not None:
        data.setdefault("model", {})["name"] = options.model
    for key in ("host", "port", "certificate", "key", "token_file", "insecure"):
        value = getattr(options, key)
        if value is not None and (key != "insecure" or value):
            data.setdefault("server", {})[key] = value
    return parse_config(data, "streamer run")


def demo_questions(stream: str, url: str) -> list[str]:
    """What to ask of the demo clip, as commands; their right answers change while it plays."""
    from capture.sources.demo import demo_truth

    truth = demo_truth()
    there = "" if url == DEFAULT_URL else f" --url {url}"
    head = f"Stream {stream} plays for {truth['seconds']:.0f} s and begins again; answers change with it. In another terminal:"
    return [head, *(f'  streamer ask "{each["question"]}"{there}' for each in truth["questions"])]


def _stream_name(source: str, taken: set[str]) -> str:
    """A name for a stream from its source: the file's stem, the camera's host, or the scheme."""
    parts = urlsplit(source)
    base = (parts.hostname or Path(parts.path).stem or parts.scheme) if len(parts.scheme) > 1 else Path(source).stem
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in base)
    name = name.strip("._-")[:48] or "stream"
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def _first_question(url: str, question: str) -> None:
    """Waits until the first stream has been watched a little, asks, and shows the answer."""
    try:
        with Client(url) as client:
            while not any(stream["frames_seen"] for stream in client.streams()):
                time.sleep(0.2)
            time.sleep(FIRST_QUESTION_AFTER)
            stream = next(stream["name"] for stream in client.streams() if stream["frames_seen"])
            print(f"\n{stream}: {question}\n> ", end="", flush=True)
            for word in client.ask(question, stream=stream):
                print(word, end="", flush=True)
            print("\n", flush=True)
    except ClientError as error:
        print(f"\nThe first question failed: {error.message}", file=sys.stderr)


def _version() -> str:
    try:
        return version("streamer")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
