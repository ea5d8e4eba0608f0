"""`streamer run`: the configuration that its options make, and what is said once the daemon is up."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from streamer.client import DEFAULT_URL, Client, ClientError

if TYPE_CHECKING:
    from streamer.config import Config

FIRST_QUESTION_AFTER = 2.0
"""Seconds that a stream is watched before `--ask` asks."""


def run(options: argparse.Namespace) -> int:
    from streamer.config import ConfigError

    try:
        config = run_config(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    from streamer.daemon import run as run_daemon

    def announce(url: str) -> None:
        for stream in config.streams:
            if stream.source == "demo:":
                print("\n".join(demo_questions(stream.name, url)), flush=True)
        if options.ask:
            threading.Thread(target=_first_question, args=(url, options.ask), daemon=True).start()

    return run_daemon(config, announce, lambda: run_config(options))


def run_config(options: argparse.Namespace) -> Config:
    """The configuration that `streamer run` was asked for: a file's, with what the options say on top.

    Raises:
        ConfigError: a value is wrong.
    """
    from streamer.config import ConfigError, load_config, parse_config
    from streamer.memory.folder import default_folder

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
    storage = data.setdefault("storage", {})
    if options.stateless:
        storage["folder"] = None
    elif storage.get("folder") is None:
        storage["folder"] = str(default_folder())
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
