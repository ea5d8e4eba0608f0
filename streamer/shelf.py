"""Recordings that are in memory to be asked, in a runner beside the engine's, and what their answers speak of."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from av.error import FFmpegError
from torch import Tensor

from model import CapacityError, Runner
from model import ConfigError as ModelConfigError
from model.policy import RetrievalPolicy
from model.serving.retrieving import retrieving
from streamer.config import Config
from streamer.engine.answer import Answer
from streamer.engine.engine import Engine
from streamer.errors import AssistantError
from streamer.indexing import check_model, cited, policy_of, restored, settle
from streamer.memory.indexes import KIND, PORTION, Facts, Index, RecordingError
from streamer.memory.moments import written
from streamer.reading import Place

T = TypeVar("T")
HELD = 3
"""Recordings that are in memory at once, with the one that is being read."""
READING, ASKING = 1.0, 0.25
"""Seconds after which the next piece of reading, or of loading what is asked, is done, whatever else there is to do."""
IDLE_SECONDS = 600.0
"""After which a recording that nobody asks leaves the memory."""
BEFORE, AFTER = 1.0, 2.0
"""Seconds that the clip of a cited moment begins before it and ends after it."""


@dataclass
class Held:
    """A recording in a slot of a runner; `users` are answers that are asked of it."""

    facts: Facts
    runner: Runner
    slot: int
    users: int = 0
    asked: float = 0.0


@dataclass
class Cited:
    """What an answer about a recording speaks of. `reached` is Unix seconds of a stream's, else seconds of the recording."""

    recording: Facts
    sign: Callable[[str], str]
    reached: float = 0.0
    policy: RetrievalPolicy = field(default_factory=RetrievalPolicy)
    attention: Tensor | None = None

    def facts(self) -> dict[str, Any]:
        """As every wire shows it: the moments that the answer rests on most, with a clip of each."""
        known = self.recording
        spans = [] if self.attention is None else cited(known, self.attention, self.policy)
        return {
            "recording": known.name,
            "seconds": round(known.seconds, 3),
            "moments": [self._moment(*span) for span in spans],
        }

    def _moment(self, since: float, until: float) -> dict[str, Any]:
        known = self.recording
        span = f"from={max(0.0, since - BEFORE):.3f}&to={min(known.seconds, until + AFTER):.3f}"
        clip = self.sign(f"/v1/recordings/{known.name}/clip?{span}")
        told = {"from": round(since, 3), "to": round(until, 3), "clip": clip}
        return told if known.begins is None else {**told, "at": written(known.begins + since)}


@dataclass
class Asked:
    """One answer's view of a held recording: see `streamer.engine.shown.Recorded`."""

    held: Held
    moment: Cited

    @property
    def runner(self) -> Runner:
        """See `Recorded`."""
        return self.held.runner

    def fork(self, number: int) -> int:
        """See `Recorded.fork`."""
        place, pages = HELD + number, self.runner.state.pages
        assert pages is not None
        self.runner.fork(self.held.slot, place)
        pages.watch(place)
        return place

    def over(self, slot: int) -> None:
        """See `Recorded.over`."""
        pages = self.runner.state.pages
        assert pages is not None
        self.moment.policy, self.moment.attention = pages.policy, pages.unwatch(slot)


class Shelf:
    """Slots for recordings, which are read into them or put back from the disk. Lives on the assistant's event loop."""

    def __init__(self, engine: Engine, config: Config, folder: Path) -> None:
        self._engine, self._config, self._folder = engine, config, folder
        self._held: OrderedDict[int, Held | None] = OrderedDict((slot, None) for slot in range(HELD))
        """By slot, the one that was asked last at the end."""
        self._busy: set[int] = set()
        """Slots that are read into."""
        self._freed, self._loading = asyncio.Event(), asyncio.Lock()
        self._loaders = ThreadPoolExecutor(1, "recordings")
        self._loads: set[asyncio.Task[Held]] = set()
        self._idle: asyncio.Future[None] | None = None
        """What lets go of a recording that nobody asked for long."""
        self._made: tuple[Runner, Runner] | None = None
        """The engine's runner, and the one beside it."""

    def close(self) -> None:
        """Waits for nothing."""
        self._loaders.shutdown(wait=False, cancel_futures=True)

    async def runner(self) -> Runner:
        """The runner beside the engine's. Raises AssistantError: no_memory, no_retrieval."""
        of = self._engine.runner
        if self._made is None or self._made[0] is not of:
            policy = await asyncio.to_thread(policy_of, self._config)
            slots = HELD + self._config.limits.answers
            try:
                made = await asyncio.to_thread(retrieving, of, policy, slots)
            except CapacityError as error:
                raise AssistantError("no_memory", f"Recordings can't be read or asked here: {error}.") from None
            except ModelConfigError as error:
                raise AssistantError("no_retrieval", f"Recordings can't be read or asked: {error}.") from None
            self._made = of, made
            self._held.update(dict.fromkeys(self._held))
        return self._made[1]

    async def hold(self, facts: Facts, answer: Answer) -> Held:
        """Has a recording in memory for an answer, until it is `left`. Raises AssistantError: bad_recording, no_memory, no_retrieval."""
        async with self._loading:
            runner, known = await self.runner(), (facts.name, facts.tokens, facts.modified)
            there = (each for each in self._held.values() if each is not None)
            held = next((x for x in there if (x.facts.name, x.facts.tokens, x.facts.modified) == known), None)
            if held is None:
                slot = await self.slot(runner, facts)
                load = asyncio.create_task(self._load(slot, runner, facts, answer))
                self._loads.add(load)
                load.add_done_callback(self._loaded)
                held = await asyncio.shield(load)  # the slot is written to even where nobody waits any more
            held.users += 1
            self._held.move_to_end(held.slot)
            return held

    def left(self, held: Held) -> None:
        """An answer needs it no more."""
        held.users -= 1
        held.asked = time.monotonic()
        self._freed.set()
        asyncio.get_running_loop().call_later(IDLE_SECONDS, self._look_idle, held)

    def put(self, slot: int, runner: Runner, facts: Facts) -> Held:
        """What was read into a slot can be asked."""
        self._held[slot] = held = Held(facts, runner, slot, asked=time.monotonic())
        return held

    def give_back(self, slot: int) -> None:
        """A slot is no longer read into."""
        self._busy.discard(slot)
        self._freed.set()

    async def remove(self, name: str) -> None:
        """Lets a recording go, unless it is asked."""
        for slot, held in self._held.items():
            if held is not None and held.facts.name == name and not held.users:
                await self._let_go(slot)

    async def _load(self, slot: int, runner: Runner, facts: Facts, answer: Answer) -> Held:
        pieces, done = -(-facts.tokens // PORTION) + 1, 0

        def run(do: Callable[[], T]) -> T:
            nonlocal done
            out = self._engine.spare(do, ASKING).result()
            done += 1
            answer.showed(min(done, pieces), pieces, facts.begins or 0.0)
            return out

        try:
            check_model(runner, facts)
            work, index = Place(runner, slot, run), Index(self._folder / KIND / facts.name)
            now = await asyncio.get_running_loop().run_in_executor(self._loaders, restored, work, index, facts)
            return self.put(slot, runner, now)
        except RecordingError as error:
            raise AssistantError("bad_recording", f"{line(error)}.") from None
        except OSError as error:
            raise AssistantError(
                "bad_recording",
                f"Recording {facts.name!r} can't be read from the disk ({line(error)}): look at the state folder.",
            ) from None
        finally:
            self.give_back(slot)

    async def slot(self, runner: Runner, facts: Facts | None = None) -> int:
        """A slot to be read into, until it is given back: the one that was asked longest ago. Raises AssistantError: no_memory."""
        while True:
            free = [s for s, held in self._held.items() if s not in self._busy and (held is None or not held.users)]
            if free:
                break
            self._freed.clear()
            await self._freed.wait()
        free.sort(key=lambda slot: self._held[slot] is not None)
        slot = free.pop(0)
        self._busy.add(slot)
        await self._let_go(slot)
        while facts is not None:
            try:
                settle(runner, facts.name, facts.tokens)
                break
            except RecordingError as error:
                if not free:
                    self.give_back(slot)
                    raise AssistantError("no_memory", f"{line(error)}.") from None
                await self._let_go(free.pop(0))
        return slot

    async def _let_go(self, slot: int) -> None:
        """Empties a slot that nobody uses."""
        held, self._held[slot] = self._held[slot], None
        if held is None:
            return

        def empty() -> None:
            held.runner.reset(slot)
            if held.runner.state.pages is not None:
                held.runner.state.pages.shrink()

        await asyncio.wrap_future(self._engine.spare(empty, ASKING))

    def _loaded(self, load: asyncio.Task[Held]) -> None:
        self._loads.discard(load)
        if not load.cancelled():
            load.exception()  # whoever waits still is told; where nobody does, nobody needs to be

    def _look_idle(self, held: Held) -> None:
        idle = not held.users and time.monotonic() - held.asked >= IDLE_SECONDS - 1
        if idle and self._held[held.slot] is held and held.slot not in self._busy:
            self._idle = asyncio.ensure_future(self._let_go(held.slot))


def line(error: BaseException) -> str:
    """An error in one line, without its full stop. What a system call or FFmpeg says goes without the path that it names."""
    if isinstance(error, OSError | FFmpegError):
        return error.strerror or type(error).__name__
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
