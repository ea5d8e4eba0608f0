"""The commands about recordings, which need no daemon: `streamer index`, `streamer ask --recording`, `streamer recordings`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model import Runner
    from streamer.config import Config
    from streamer.indexing import Video
    from streamer.memory.indexes import Facts

INTERRUPTED = 128 + signal.SIGINT
"""The exit code that a shell knows."""
DAEMONS = ("stream", "at", "since", "until", "instructions", "temperature", "seed", "url", "token_file", "ca", "wait")
"""Options of `streamer ask` that a recording's answer knows nothing of."""
UNTOLD = "nothing whole is kept of it: index it again, or remove it"


def add_arguments(commands: Any) -> None:
    """Enters `index` and `recordings` among the commands."""
    index = commands.add_parser("index", help="read recorded video once, to ask about it as often as you like")
    index.add_argument("videos", nargs="*", metavar="VIDEO", help="video files, of any container")
    index.add_argument("--fps", type=float, default=2.0, help="read this many frames a second (default 2)")
    index.add_argument("--model", help="nano, 4b, a folder or a Hugging Face repository")
    index.add_argument("--stream", help="instead of files, what was recorded of this stream")
    index.add_argument("--from", dest="since", metavar="MOMENT", help="from when on, such as 13:00 or '2 hours ago'")
    index.add_argument("--to", dest="until", metavar="MOMENT", help="until when (default now)")
    _common(index, _index)
    recordings = commands.add_parser("recordings", help="list and remove what 'streamer index' has read")
    kinds = recordings.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _common(kinds.add_parser("list", help="one line a recording"), _list)
    remove = kinds.add_parser("remove", help="remove an index; its video stays, unless it was sent to the daemon")
    remove.add_argument("name", help="its name, or the video's path")
    _common(remove, _remove)


def _common(parser: argparse.ArgumentParser, command: Any) -> None:
    parser.add_argument("--config", metavar="FILE", help="configuration file: its model and storage")
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    parser.set_defaults(command=lambda options: _told(command, options))


def ask(options: argparse.Namespace) -> int:
    """Answers from an index."""
    return _told(_ask, options)


def _told(command: Any, options: argparse.Namespace) -> int:
    """Runs a command; what is wrong is one line."""
    from model import CapacityError
    from model.checkpoint import CheckpointError
    from model.config import ConfigError as ModelConfigError
    from streamer.config import ConfigError
    from streamer.errors import AssistantError
    from streamer.memory.folder import FolderError
    from streamer.memory.indexes import RecordingError

    try:
        return int(command(options))
    except (
        ConfigError, FolderError, RecordingError, AssistantError, CheckpointError, ModelConfigError, CapacityError
    ) as error:  # fmt: skip
        print(f"streamer: {error}", file=sys.stderr)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"streamer: {error.strerror or error}{where}", file=sys.stderr)
    return 1


def _configured(options: argparse.Namespace, model: str | None = None) -> tuple[Config, Path]:
    """The configuration, with another model where one is named, and the state folder."""
    from streamer.config import load_config, parse_config
    from streamer.memory.folder import default_folder, folder_of

    config = load_config(options.config) if options.config else parse_config({})
    if model is not None:
        data = config.model_dump(mode="json", exclude_unset=True)
        data.setdefault("model", {})["name"] = model
        config = parse_config(data, "streamer")
    folder = config.storage.folder
    return config, default_folder() if folder is None else folder_of(folder)


def _index(options: argparse.Namespace) -> int:
    from streamer.indexing import StoppedError, file_video, load, stream_video
    from streamer.memory.indexes import KIND, Index, RecordingError
    from streamer.memory.moments import read_moment

    if not 0 < options.fps <= 1_000:
        raise RecordingError(f"--fps {options.fps:g} must be more than 0 and at most 1000")
    if bool(options.videos) == bool(options.stream):
        raise RecordingError("name video files, or a recorded stream with --stream NAME --from MOMENT")
    if not options.stream and (options.since or options.until):
        raise RecordingError("--from and --to belong to --stream: a file is read whole")
    config, folder = _configured(options, options.model)
    now = time.time()
    if options.stream:
        try:
            since = read_moment(options.since, now) if options.since else 0.0
            until = read_moment(options.until, now) if options.until else now
        except ValueError as error:
            raise RecordingError(str(error)) from None
        if since >= until:
            raise RecordingError(f"--from {options.since} is not before --to {options.until or 'now'}: exchange them")
        finds: list[Callable[[], Video]] = [partial(stream_video, folder, options.stream, since, until)]
    else:
        finds = [partial(file_video, folder, path, threads=os.cpu_count() or 1) for path in options.videos]
    for find in finds:
        find()  # what can't be read is said before anything is
    runner, failed = load(config), 0
    for find in finds:
        try:
            video = find()  # whose name the one before may have taken
            _read(options, runner, folder, config, video)
        except StoppedError:
            kept = Index(folder / KIND / video.name).facts()
            left = f"its first {kept.seconds:.0f} s are kept" if kept else "nothing of it is kept yet"
            print(f"streamer: {video.name}: interrupted: {left}; the same command goes on", file=sys.stderr)
            return INTERRUPTED
        except RecordingError as error:
            if len(finds) == 1:
                raise
            print(f"streamer: {error}", file=sys.stderr)
            failed = 1
    return failed


def _read(options: argparse.Namespace, runner: Runner, folder: Path, config: Config, video: Video) -> None:
    """Reads one into its index, and tells of it. Raises RecordingError, OSError, StoppedError after Ctrl-C."""
    from streamer.indexing import index_video
    from streamer.reading import Place

    _announce(options, runner, folder, config, video)
    began = time.monotonic()
    place = Place(runner, alone=True)
    with _interruptible(_bar(video)) as told:
        facts = index_video(place, folder, video, options.fps, config.storage.indexes, told)
    took = time.monotonic() - began
    if options.json:
        print(json.dumps(_facts(facts) | {"took_s": round(took, 2)}, ensure_ascii=False))
    else:
        print(f"{facts.name}: {facts.seconds:.0f} s in {facts.frames} frames, {facts.tokens} tokens, in {took:.0f} s")
    if facts.note:
        print(f"streamer: {facts.name}: {facts.note}; what was read before it is kept", file=sys.stderr)


@contextmanager
def _interruptible(told: Callable[[Facts], None]) -> Iterator[Callable[[Facts], None]]:
    """What is told as before, but raises StoppedError after a first Ctrl-C, between two steps; a second one is as ever."""
    from streamer.indexing import StoppedError

    asked = False

    def ask(*given: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    def tell(facts: Facts) -> None:
        told(facts)
        if asked:
            raise StoppedError

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield tell
    finally:
        signal.signal(signal.SIGINT, before)


def _announce(options: argparse.Namespace, runner: Runner, folder: Path, config: Config, video: Video) -> None:
    """Says how large the index will be. Raises RecordingError where there is no room for it."""
    from streamer.indexing import check_room, expected_bytes
    from streamer.memory.indexes import used_bytes

    size, budget = expected_bytes(runner, video.seconds, options.fps), config.storage.indexes
    used = used_bytes(folder, video.name)
    how_long = f"{video.seconds:.0f} s" if video.seconds else "of unknown length"
    print(
        f"{video.name}: {how_long}, about {size / 1e6:.0f} MB in {folder} ({used / 1e6:.0f} of {budget / 1e6:.0f} MB are used)",
        file=sys.stderr,
    )
    if told := check_room(runner, folder, video, options.fps, budget):
        print(f"streamer: {told}", file=sys.stderr)


def _bar(video: Video) -> Any:
    from tqdm import tqdm

    bar = tqdm(total=round(video.seconds, 1) or None, unit="s", desc=video.name, disable=None, leave=False)

    def told(facts: Facts) -> None:
        bar.update(facts.seconds - bar.n)

    return told


def _ask(options: argparse.Namespace) -> int:
    from streamer.indexing import Recording, load
    from streamer.memory.indexes import RecordingError, changed, named

    if other := next((each for each in DAEMONS if getattr(options, each)), None):
        shown = {"since": "from", "until": "to"}.get(other, other.replace("_", "-"))
        raise RecordingError(f"--recording stands alone and needs no daemon: leave --{shown} out")
    if options.max_tokens is not None and options.max_tokens < 1:
        raise RecordingError(f"--max-tokens {options.max_tokens} must be at least 1")
    if not options.question.strip():
        raise RecordingError("the question is empty: write one")
    _, folder = _configured(options)
    found = named(folder, options.recording) if options.recording else None
    if found is None:
        raise RecordingError(f"{options.recording!r} is not indexed: run streamer index with the video's path")
    index, facts = found
    began = time.monotonic()
    print(f"streamer: loading {facts.name}, {index.bytes / 1e6:.0f} MB", file=sys.stderr, flush=True)
    if not facts.complete:
        mend = "it is being indexed" if index.busy else "index it again to go on"
        print(f"streamer: only its first {facts.seconds:.0f} s are read: {mend}", file=sys.stderr)
    if changed(facts):
        why = "has changed since it was indexed, and this is about what it was: index it again"
        print(f"streamer: {facts.source} {why}", file=sys.stderr)
    config, _ = _configured(options, facts.model)
    recording = Recording(load(config), index, facts)
    facts = recording.facts
    loaded, words = time.monotonic(), []
    for word in recording.ask(options.question, options.max_tokens or config.answers.max_tokens):
        words.append(word)
        if not options.json:
            print(word, end="", flush=True)
    spans = [[_moment(facts, moment) for moment in span] for span in recording.cited]
    if options.json:
        told = {"question": options.question, "answer": "".join(words), "recording": facts.name, "moments": spans}
        took = {"load_s": round(loaded - began, 3), "answer_s": round(time.monotonic() - loaded, 3)}
        print(json.dumps(told | took, ensure_ascii=False))
    else:
        print(f"\n[{', '.join('–'.join(map(str, span)) for span in spans)}]")
    return 0


def _moment(facts: Facts, seconds: float) -> str:
    """A moment of a recording: minutes and seconds from its beginning, or the time of day of a stream's."""
    if facts.begins is not None:
        return time.strftime("%H:%M:%S", time.localtime(facts.begins + seconds))
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def _list(options: argparse.Namespace) -> int:
    from streamer.memory.indexes import every

    _, folder = _configured(options)
    known = [(index, index.facts()) for index in every(folder)]
    found = [(index, facts) for index, facts in known if facts is not None]
    rest = [(index.folder.name, size) for index, facts in known if facts is None and (size := index.bytes)]
    if options.json:
        told = [_facts(facts) | {"bytes": index.bytes} for index, facts in found]
        told += [{"name": name, "bytes": size, "complete": False, "note": UNTOLD} for name, size in rest]
        print(json.dumps(told, ensure_ascii=False))
        return 0
    for name, size in rest:
        print(f"{name}  {size / 1e6:.0f} MB  ({UNTOLD})")
    for index, facts in found:
        state = facts.note or ("" if facts.complete else "not read to its end")
        line = f"{facts.name}  {facts.seconds:.0f} s  {index.bytes / 1e6:.0f} MB  {facts.model}  {facts.source}"
        print(line + (f"  ({state})" if state else ""))
    return 0


def _remove(options: argparse.Namespace) -> int:
    from streamer.memory.indexes import RecordingError, every, named

    _, folder = _configured(options)
    found = named(folder, options.name)
    left = (each for each in every(folder) if each.folder.name == options.name)
    index = next(left, None) if found is None else found[0]
    if index is None:
        raise RecordingError(f"{options.name} is not indexed: streamer recordings list shows what is")
    name = index.folder.name
    if index.busy:
        raise RecordingError(f"{name} is being indexed by another process: stop that first")
    index.remove()
    print(json.dumps({"removed": name}) if options.json else f"{name} is removed")
    return 0


def _facts(facts: Facts) -> dict[str, Any]:
    names = ("name", "source", "model", "fps", "seconds", "frames", "tokens", "complete", "note")
    return {name: getattr(facts, name) for name in names}
