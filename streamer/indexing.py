"""Recordings that are read once, by attention that retrieves, and asked as often as one likes."""

from __future__ import annotations

import errno
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import torch

from capture import SourceError, SourceOptions, drained, open_source
from capture.convert import Pictures
from capture.gate import ROUNDING, Selection
from capture.lifecycle import PLAYED
from capture.sources.spans import LONGEST, Picture, decode, decoders, plan
from model import Runner, load_runner
from model.checkpoint import locate, read_config
from model.config import PRESETS
from model.pages import FullError
from model.policy import RetrievalPolicy
from model.serving.capacity import capacity
from model.serving.sampling import Sampling
from streamer.config import Config
from streamer.errors import AssistantError
from streamer.memory.ahead import ahead
from streamer.memory.footage import decoded, picture, pieces
from streamer.memory.indexes import Facts, Index, RecordingError, Writing, free_name, used_bytes
from streamer.memory.recording import KIND, Segment, find_segments
from streamer.reading import Place, Reading

LONGEST_QUESTION = 1_024
MANY = 4
"""Threads from which on decoding at several places is faster."""
CITED = 3
"""Spans of time that an answer names at most."""
JOINED = 2.0
"""Seconds between moments that are one span."""
AHEAD = 16
"""Pictures that are decoded before they are read."""
PLAYLISTS = frozenset({"hls", "dash", "concat", "imf"})
"""Formats that name other files, on this machine or elsewhere."""
WORKING = 1.5
"""Of its keys' and values' bytes, what a recording takes while it is read: pages grow by copying a layer's."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a disk that has no room."""


class StoppedError(Exception):
    """Nobody wants the recording to be read on."""


@dataclass(frozen=True, slots=True)
class Video:
    """A recording to be read: `seconds` is how long it says it is, 0 where it does not."""

    name: str
    source: str
    size: int
    modified: float
    seconds: float
    begins: float | None
    frames: Callable[[float, list[str]], Iterator[Picture]]
    """Its pictures at so many a second; why it ends before its end is put into the list."""


def load(config: Config) -> Runner:
    """The configured model under attention that retrieves, its own where it has that: a slot to read into, and one to answer in."""
    model = config.model
    if model.device == "cuda" and not torch.cuda.is_available():
        raise AssistantError("no_device", "model.device cuda: no CUDA device is to be had here; set it to cpu.")
    return load_runner(
        model.name, device=model.device, dtype=model.dtype, slots=2, random_weights=model.random_weights,
        policy=policy_of(config), position_horizon=model.position_horizon, frames_per_step=model.frames_per_step,
        picture_tokens=model.picture_tokens,
    )  # fmt: skip


def policy_of(config: Config) -> RetrievalPolicy:
    """How the configured model's attention retrieves: as it was told to, or as usual."""
    name = config.model.name
    if name not in PRESETS and isinstance(own := read_config(locate(name)).policy, RetrievalPolicy):
        return own
    return RetrievalPolicy()


def file_video(folder: Path, path: str, name: str | None = None, threads: int = 1) -> Video:
    """A video file, whose index has this name or one made of the file's, decoded in so many threads. Raises RecordingError, OSError.

    With many a file that is fit for it is decoded at several places at once, in processes: the threads of one decoder wait for
    each other.
    """
    found, shown = Path(path).expanduser().resolve(), name or path  # what came over the wire is known by its name
    if not found.is_file():
        raise RecordingError(f"{shown}: {_no_file(path, found)}")
    try:
        with found.open("rb"):
            pass
    except OSError as error:
        raise RecordingError(f"{shown}: it can't be read ({error.strerror}): look at its permissions") from None
    try:
        with av.open(f"file:{found}") as container:
            if PLAYLISTS & set(container.format.name.split(",")):
                raise RecordingError(f"{shown}: it is a playlist: name the videos themselves")
            if not container.streams.video:
                raise RecordingError(f"{shown}: it has no video: name a file that has")
            seconds = (container.duration or 0) / av.time_base
    except av.error.FFmpegError:
        raise RecordingError(f"{shown}: it is no video that can be decoded") from None
    stat, source = found.stat(), str(found)

    def frames(fps: float, note: list[str]) -> Iterator[Picture]:
        side = SourceOptions().largest_side
        parts = math.ceil(seconds / LONGEST) or threads  # it may not say how long it is
        if threads >= MANY and parts > 1:
            try:
                # Whoever has the model takes a core, too.
                with decoders(found, side, min(threads - 1, parts)) as processes:
                    if (spans := plan(found, fps, side)) is not None:
                        yield from decode(processes, spans)
                        return
            except (SourceError, av.error.FFmpegError, OSError) as error:
                raise RecordingError(f"{shown}: {getattr(error, 'strerror', None) or error}") from None
        try:
            opened = open_source(source, SourceOptions(realtime=False, fps=fps, threads=threads))
        except SourceError as error:
            raise RecordingError(str(error)) from None
        for frame in drained(opened, AHEAD):
            yield frame.time, frame.pixels
        if opened.status.reason != PLAYED:
            note.append(opened.status.reason.removeprefix(f"{opened.name}: "))

    name = name or free_name(folder, found.stem, source)
    return Video(name, source, stat.st_size, stat.st_mtime, seconds, None, frames)


def stream_video(folder: Path, stream: str, since: float, until: float) -> Video:
    """What was recorded of a stream from `since` to `until` (Unix seconds). Raises RecordingError, OSError."""
    place = folder / KIND / stream
    kept = find_segments(place) if place.is_dir() else []
    run: list[Segment] = [each for each in kept if each.ends >= since and each.begins <= until]
    if not run:
        spans = (
            f"it is recorded from {_clock(kept[0].begins)} to {_clock(kept[-1].ends)}"
            if kept
            else "nothing is recorded of it"
        )
        raise RecordingError(f"stream {stream} has no recording between {_clock(since)} and {_clock(until)}: {spans}")
    begins = max(since, run[0].begins)

    def frames(fps: float, note: list[str]) -> Iterator[Picture]:
        chosen, whole = Selection(fps), [each for each in pieces(run) if _opens(each.segment.path)]
        if torn := len(run) - len(whole):
            note.append(f"{torn} segment{'s' if torn > 1 else ''} can't be read")
        makers: dict[int, Pictures] = {}
        for each in decoded(whole):
            wall = each.piece.wall(each.pts)
            if begins <= wall <= until and chosen.timely(wall - begins):
                yield wall - begins, picture(each, makers)

    ends = min(until, run[-1].ends)
    source = f"{stream} {since:.3f} {until:.3f}"
    return Video(
        free_name(folder, f"{stream}-{_clock(begins).replace(':', '')}", source),
        source, sum(each.size for each in run), run[-1].ends, ends - begins, begins,
        lambda fps, note: ahead(frames(fps, note), AHEAD),
    )  # fmt: skip


def expected_bytes(runner: Runner, seconds: float, fps: float) -> int:
    """About what the index of so many seconds takes, in bytes."""
    assert runner.state.pages is not None
    return expected_tokens(runner, seconds, fps) * runner.state.pages.token_bytes + runner.state.bytes_per_slot


def expected_tokens(runner: Runner, seconds: float, fps: float) -> int:
    """About how many tokens so many seconds are."""
    return int(seconds * fps / runner.frames_per_step * (runner.tokens_per_step + runner.config.step_text))


def check_room(runner: Runner, folder: Path, video: Video, fps: float, budget: int) -> str:
    """What is to be told of memory, as `settle` does. Raises RecordingError where disk or memory has no room for an index; OSError."""
    size, used = expected_bytes(runner, video.seconds, fps), used_bytes(folder, video.name)
    if used + size > budget:
        raise RecordingError(
            f"{video.name}: {(used + size - budget) / 1e6:.0f} MB more than storage.indexes allows: lower --fps, "
            "remove a recording, or raise it"
        )
    place = next(each for each in (folder, *folder.parents) if each.exists())
    if size > (free := shutil.disk_usage(place).free):
        raise RecordingError(f"{video.name}: {place} has {free / 1e6:.0f} MB free: make room, or lower --fps")
    return settle(runner, video.name, expected_tokens(runner, video.seconds, fps))


def settle(runner: Runner, name: str, tokens: int) -> str:
    """Has keys and values that a GPU has no room for kept in the host's memory; one line that says so, or nothing.

    Raises RecordingError where that has no room either.
    """
    pages, room, host = runner.state.pages, capacity(runner.device, 1), capacity(torch.device("cpu"), 1)
    assert pages is not None
    size = tokens * pages.token_bytes * WORKING
    if room is None or size <= (free := room.slots + pages.free_bytes):
        return ""
    needs = f"{name}: its keys and values need {size / 1e9:.1f} GB of memory on {runner.device}, {free / 1e9:.1f} GB are free"
    if runner.device.type == "cpu" or (host is not None and size > host.slots):
        raise RecordingError(f"{needs}: lower --fps, or free some")
    pages.resident = max(1, int(free / WORKING) // (pages.size * pages.token_bytes))
    return f"{needs}: the oldest are kept in this machine's, which is slower"


def index_video(
    place: Place, folder: Path, video: Video, fps: float, budget: int, told: Callable[[Facts], None]
) -> Facts:
    """Reads a recording into an index, or goes on with one; `told` hears how far it is.

    What was read before a fault is kept, and the fault is the index's note; so is what was read before `told` raises
    StoppedError, which is raised again. Raises RecordingError where nothing was, or the disk takes no more; OSError.
    """
    index, runner, pages = Index(folder / "indexes" / video.name), place.runner, place.runner.state.pages
    assert pages is not None
    index.open()
    try:
        budget -= used_bytes(folder, video.name) + runner.state.bytes_per_slot
        facts = index.facts()
        if facts is not None and facts.source != video.source:  # since the name was looked for
            raise RecordingError(
                f"{video.name} has just become the index of {facts.source}: index {video.source} again"
            )
        same = Facts(
            video.name, video.source, video.size, video.modified, runner.name, runner.fingerprint, fps, video.begins
        )
        if facts is not None and _same(facts, same) and index.whole(facts, pages.token_bytes):
            if not facts.complete and facts.tokens * pages.token_bytes > budget:
                facts.note = _full(facts)
                return facts
            if facts.complete:
                return facts
            restore(place, index, facts)
            facts.note = ""
        else:
            facts = same
        try:
            with Writing(index) as writing:
                _read(place, writing, facts, video, budget, told)
        except StoppedError:
            if index.facts() is None:
                index.clear()
            raise
        except OSError as error:
            raise RecordingError(_unwritten(index, video, error)) from None
        if not facts.tokens:
            index.remove()
            raise RecordingError(f"{video.source}: {facts.note or 'it holds no picture that can be decoded'}")
        return facts
    finally:
        index.close()


def _unwritten(index: Index, video: Video, error: OSError) -> str:
    """What there is of an index that could not be written; what is of no use goes."""
    if not index.folder.exists():
        return f"{video.name} was removed while it was read"
    mend = "make room" if error.errno in FULL else "see to that"
    if (kept := index.facts()) is not None:
        why = f"its first {kept.seconds:.0f} s are kept"
        return f"{video.name}: {error.strerror or error}: {why}: {mend}, and index it again to go on"
    index.clear()
    return f"{video.name}: {error.strerror or error}: nothing of it is kept: {mend}, and index it again"


def _full(facts: Facts) -> str:
    return f"storage.indexes is full after {facts.seconds:.0f} s: remove a recording, or raise it, and index it again to go on"


def _read(
    place: Place, writing: Writing, facts: Facts, video: Video, budget: int, told: Callable[[Facts], None]
) -> None:
    runner, pages, notes = place.runner, place.runner.state.pages, list[str]()
    assert pages is not None
    reading = Reading(place, writing, facts, told)
    room = min(expected_tokens(runner, video.seconds, facts.fps), budget // pages.token_bytes) - facts.tokens
    place.run(lambda: pages.make_room(max(0, room)))
    skip, full = facts.seconds + ROUNDING if facts.steps else -1.0, False
    try:
        try:
            for picture in video.frames(facts.fps, notes):
                if picture[0] <= skip:
                    continue
                reading.take(picture)
                if not reading.waiting and reading.tokens * pages.token_bytes > budget:
                    full = True
                    break
            else:
                reading.see()
        except FullError as error:
            notes.append(str(error))
        reading.settle()
    except StoppedError:
        reading.told = _unheard
        reading.settle()
        if facts.tokens:
            reading.keep()
        raise
    if full:
        notes.append(_full(facts))
    facts.note, facts.complete = "; ".join(notes), not full
    if facts.tokens:
        reading.keep()


def _unheard(facts: Facts) -> None:
    """Nobody hears how far it is any more."""


class Recording:
    """An index in the runner, to be asked. Raises RecordingError where another model made it, OSError."""

    def __init__(self, runner: Runner, index: Index, facts: Facts) -> None:
        check_model(runner, facts)
        settle(runner, facts.name, facts.tokens)
        self.runner, self.facts = runner, restored(Place(runner), index, facts)
        self.cited: list[tuple[float, float]] = []
        """When what the last answer looked at most was shown: spans in seconds of the recording, the most attended first."""

    def ask(self, question: str, longest: int = 256) -> Iterator[str]:
        """The answer's words, greedily. Raises RecordingError for a question that is too long."""
        runner, pages = self.runner, self.runner.state.pages
        assert pages is not None
        tokens = runner.tokenizer.encode_question(question)
        if len(tokens) > LONGEST_QUESTION:
            raise RecordingError(f"the question has {len(tokens)} tokens, {LONGEST_QUESTION} are allowed: shorten it")
        runner.fork(0, 1)
        pages.watch(1)
        words, token = runner.tokenizer.detokenizer(), runner.prefill(1, tokens, Sampling())
        for _ in range(longest):
            if token in runner.tokenizer.stops:
                break
            if word := words.push(token):
                yield word
            token = runner.decode([1], [token], [Sampling()])[0]
        if word := words.flush():
            yield word
        self.cited = cited(self.facts, pages.unwatch(1), pages.policy)


def cited(facts: Facts, attention: torch.Tensor, policy: RetrievalPolicy) -> list[tuple[float, float]]:
    """Spans of time whose steps were attended to most, from attention by block. Pure.

    The first blocks are left out, which attention rests on where it looks for nothing.
    """
    size = policy.block_size
    each = torch.cat((attention.double() / size, torch.zeros(1, dtype=torch.float64)))
    before = size * (each.cumsum(0) - each)
    bounds = torch.tensor([*(first for first, _ in facts.steps), facts.tokens])
    bounds = bounds.clamp(min(policy.init_blocks, len(attention)) * size, len(attention) * size)
    shares = (before[bounds // size] + each[bounds // size] * (bounds % size)).diff().tolist()
    best = sorted(range(len(shares)), key=lambda number: -shares[number])[:CITED]
    spans: list[tuple[float, float]] = []
    for number in best:
        if shares[number] <= 0:
            continue
        since = facts.steps[number - 1][1] if number else 0.0
        until = facts.steps[number][1]
        near = next((i for i, (a, b) in enumerate(spans) if since <= b + JOINED and until >= a - JOINED), None)
        if near is None:
            spans.append((since, until))
        else:
            spans[near] = min(spans[near][0], since), max(spans[near][1], until)
    return spans


def check_model(runner: Runner, facts: Facts) -> None:
    """Raises RecordingError where another model made an index."""
    if facts.fingerprint != runner.fingerprint:
        raise RecordingError(
            f"the index {facts.name} was made by another model ({facts.model}) than {runner.name} as it is now: index it again"
        )


def restored(place: Place, index: Index, facts: Facts) -> Facts:
    """As `restore`; where the index is written meanwhile, of what there is now. Returns what is known of that."""
    while True:
        try:
            restore(place, index, facts)
            return facts
        except RecordingError:
            newer = index.facts()
            if newer is None or newer.tokens == facts.tokens:
                raise
            facts = newer


def restore(place: Place, index: Index, facts: Facts) -> None:
    """Puts an index into its place. Raises RecordingError where it is damaged, OSError."""
    runner, slot = place.runner, place.slot
    state, pages = runner.state, runner.state.pages
    assert pages is not None
    parts = index.parts(facts)

    def begin() -> None:
        runner.reset(slot)
        pages.make_room(facts.tokens)
        for name, part in state.kept(slot).items():
            part.copy_(parts[name])
        runner.grids[slot] = facts.grid

    place.run(begin)
    for rows in index.rows(facts, (len(pages.layers), 2, pages.groups, pages.head), state.dtype):
        place.run(partial(pages.extend, slot, rows))


def _no_file(path: str, found: Path) -> str:
    if "://" in path:
        return "it is an address, and files are read: fetch it, or record it as a stream (record: true) and name that"
    if found.is_dir():
        return "it is a folder: name a video file"
    return "it is no file of data: name a video file" if found.exists() else "there is no such file"


def _opens(path: Path) -> bool:
    """Whether a segment can be read at all: not one that was begun just now, or was torn, or is gone."""
    try:
        with av.open(f"file:{path}"):
            return True
    except (OSError, av.error.FFmpegError):
        return False


def _same(one: Facts, other: Facts) -> bool:
    """Whether an index is of this recording, by this model, at this rate."""
    names = ("source", "size", "modified", "fingerprint", "fps")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))
