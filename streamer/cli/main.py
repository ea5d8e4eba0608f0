"""The `streamer` command. It starts fast: what is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from streamer.cli.bench import add_arguments as bench_arguments
from streamer.cli.eval import add_arguments as evaluation_arguments
from streamer.cli.fleet import add_arguments as fleet_arguments
from streamer.cli.recordings import add_arguments as recording_arguments
from streamer.cli.recordings import ask as ask_recording
from streamer.cli.remote import ask, forget, printable, reach, setting, status, stream_add, stream_remove, timeline
from streamer.cli.run import run
from streamer.cli.verify import add_arguments as verification_arguments
from streamer.cli.watch import add_arguments as watch_arguments
from streamer.client import ClientError

if TYPE_CHECKING:
    from streamer.config import Config, StreamConfig

KINDS = ("a video file", "demo:", "rtsp://…", "rtmp://…", "http(s)://… (HLS, MJPEG)", "push://NAME", "whip://NAME")
"""What `--source` takes beside local cameras."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 (it failed, one line on stderr) or 2 (wrong usage)."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ClientError as error:
        print(f"streamer: {printable(error.message)}", file=sys.stderr)
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

    run_parser = commands.add_parser("run", help="start the daemon")
    run_parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="configuration file")
    run_parser.add_argument(
        "--source", action="append", default=[], help="video to watch: file, rtsp://…, demo:, or a configuration file"
    )
    run_parser.add_argument("--name", action="append", default=[], help="name of the stream, for each --source in turn")
    run_parser.add_argument("--loop", action="store_true", help="play files again and again")
    run_parser.add_argument("--model", help="nano, 4b, a folder or a Hugging Face repository")
    run_parser.add_argument("--host", help="address to listen at (default 127.0.0.1)")
    run_parser.add_argument("--port", type=int, help="port to listen at (default 8765, 0 for any)")
    run_parser.add_argument("--certificate", metavar="FILE", help="TLS certificate with its chain, PEM")
    run_parser.add_argument("--key", metavar="FILE", help="TLS key, PEM")
    run_parser.add_argument("--token-file", metavar="FILE", help="tokens that may come in: NAME SCOPES TOKEN a line")
    run_parser.add_argument(
        "--insecure", action="count", default=0, help="said twice: listen to others without tokens or without TLS"
    )
    run_parser.add_argument(
        "--stateless", action="store_true", help="keep nothing: begin with no memory and leave none"
    )
    run_parser.add_argument("--ask", metavar="QUESTION", help="ask this once the first stream is live")
    run_parser.set_defaults(command=run)

    ask_parser = commands.add_parser("ask", help="ask a running daemon; the answer is shown as it is spoken")
    ask_parser.add_argument("question")
    ask_parser.add_argument("--stream", help="which stream; needed when there are several")
    ask_parser.add_argument("--instructions", help="how to answer")
    ask_parser.add_argument(
        "--at", metavar="MOMENT", help="a moment of the past: '10 minutes ago', 14:03, an ISO time or Unix seconds"
    )
    ask_parser.add_argument(
        "--from", dest="since", metavar="MOMENT", help="show the model a recorded span again, and ask about that alone"
    )
    ask_parser.add_argument("--to", dest="until", metavar="MOMENT", help="the span's end (default now)")
    ask_parser.add_argument("--max-tokens", type=int, help="longest answer")
    ask_parser.add_argument("--temperature", type=float, help="0 (the default) always takes the likeliest word")
    ask_parser.add_argument("--seed", type=int, help="makes a sampled answer repeatable")
    ask_parser.add_argument(
        "--recording", metavar="VIDEO", help="ask what 'streamer index' has read: a file or a name; needs no daemon"
    )
    ask_parser.add_argument("--config", metavar="FILE", help="configuration file with the model, for --recording")
    reach(ask_parser)
    ask_parser.set_defaults(command=_ask)

    recording_arguments(commands)

    forget_parser = commands.add_parser("forget", help="remove what is kept of a stream, and what it remembers")
    forget_parser.add_argument("name", nargs="?", help="without it, what is kept of which streams is listed")
    forget_parser.add_argument(
        "--from", dest="since", metavar="MOMENT", help="from when on, such as '10 minutes ago' or 14:03"
    )
    forget_parser.add_argument("--to", dest="until", metavar="MOMENT", help="until when recordings are removed")
    forget_parser.add_argument("--keep-memory", action="store_true", help="let the stream remember what it has seen")
    reach(forget_parser)
    forget_parser.set_defaults(command=forget)

    timeline_parser = commands.add_parser("timeline", help="what happened to a stream, or to all of them")
    timeline_parser.add_argument("name", nargs="?")
    timeline_parser.add_argument(
        "--search", metavar="WORDS", help="entries with these words: 'van', 'van NOT red', 'ban*'"
    )
    timeline_parser.add_argument("--since", metavar="MOMENT", help="from when on, such as '10 minutes ago' or 14:03")
    timeline_parser.add_argument("--until", metavar="MOMENT")
    timeline_parser.add_argument("--kind", help="such as note, question or gap; several with commas between")
    timeline_parser.add_argument("--limit", type=int, default=50, help="how many of the newest are shown (default 50)")
    reach(timeline_parser)
    timeline_parser.set_defaults(command=timeline)

    status_parser = commands.add_parser("status", help="one line a stream")
    reach(status_parser)
    status_parser.set_defaults(command=status)

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
        type=setting,
        metavar="KEY=VALUE",
        help="any other key of a configured stream, such as policy=every, change=4 or transport=udp; may be said again",
    )
    reach(add)
    add.set_defaults(command=stream_add)
    remove = stream_commands.add_parser("remove", help="stop watching, and forget what was seen")
    remove.add_argument("name")
    reach(remove)
    remove.set_defaults(command=stream_remove)
    listed = stream_commands.add_parser("list", help="as 'streamer status'")
    reach(listed)
    listed.set_defaults(command=status)

    watch_arguments(commands.add_parser("watch", help="be told when something becomes so"))

    fleet_arguments(commands.add_parser("fleet", help="run streams over many engines, and move them"))

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

    models = commands.add_parser("models", help="list the models that are known, and which this machine has memory for")
    models.add_argument("--json", action="store_true", help="print facts as JSON")
    models.set_defaults(command=_models)

    verification = commands.add_parser(
        "verify", help="hold a checkpoint to transformers, and say whether to trust it here"
    )
    verification_arguments(verification)
    verification.set_defaults(command=_verify)

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


def _token(options: argparse.Namespace) -> int:
    from streamer.fields import NAME, NAME_MEND
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


def _ask(options: argparse.Namespace) -> int:
    return ask(options) if options.recording is None else ask_recording(options)


def _bench(options: argparse.Namespace) -> int:
    from streamer.cli.bench import run as bench

    return bench(options)


def _eval(options: argparse.Namespace) -> int:
    from streamer.cli.eval import run as evaluate

    return evaluate(options)


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


def _models(options: argparse.Namespace) -> int:
    from streamer.cli.models import run as listed

    return listed(options)


def _verify(options: argparse.Namespace) -> int:
    from streamer.cli.verify import run as hold

    return hold(options)


def _doctor(options: argparse.Namespace) -> int:
    from streamer.cli.doctor import run as examine

    return examine(options)


def _completion(options: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(_parser(), options.shell))
    return 0


def _config_check(options: argparse.Namespace) -> int:
    from streamer.config import ConfigError, read_config

    try:
        config = _checked(read_config(options.config), options.config)
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


def _checked(data: dict[str, Any], origin: str) -> Config:
    """The configuration of a file. Raises ConfigError with all that is wrong, also where one part hides it in another."""
    from streamer.config import Config, ConfigError, parse_config

    def sound(part: dict[str, Any]) -> Config | None:
        try:
            return parse_config(part)
        except ConfigError:
            return None

    try:
        config, problems = parse_config(data, origin), []
        streams = dict(enumerate(config.streams))
    except ConfigError as error:
        # What is right by itself is judged all the same.
        right = {key: value for key, value in data.items() if key != "streams" and sound({key: value})}
        config, problems = sound(right) or Config(), error.problems
        listed = data.get("streams")
        read = {
            index: sound({"streams": [each]}) for index, each in enumerate(listed if isinstance(listed, list) else ())
        }
        streams = {index: found.streams[0] for index, found in read.items() if found}
    if problems := [*problems, *_what_can_not_run(config, streams)]:
        raise ConfigError(problems, origin)
    return config


def _what_can_not_run(config: Config, streams: dict[int, StreamConfig]) -> list[str]:
    """What `streamer run` would refuse of tokens, certificates, sources and the state folder, a line each."""
    from capture import SourceError
    from streamer.config import ConfigError
    from streamer.engine.stream import configured_source
    from streamer.memory.folder import FolderError, check_folder, folder_of
    from streamer.server.tokens import known_tokens, signed_tokens

    problems: list[str] = []
    for read in (known_tokens, signed_tokens):
        try:
            read(config)
        except ConfigError as error:
            problems += error.problems
    for index, stream in streams.items():
        try:
            configured_source(stream, config.webrtc)
        except SourceError as error:
            problems.append(f"streams[{index}].source: {error}")
    if config.storage.folder is not None:
        try:
            check_folder(folder_of(config.storage.folder))
        except FolderError as error:
            problems.append(f"storage.folder: {error}")
    return problems


def _version() -> str:
    try:
        return version("streamer")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
