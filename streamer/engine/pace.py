"""What is done next for answers, at their pace: questions are read in pieces, and words spoken, in the time that frames leave.

No answer is faster than the ceiling. Each is promised a step as often as the floor says, for which frames wait. Those that have
no slot yet wait in order of asking. Times are seconds on the scheduler's clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamer.engine.costs import Costs
from streamer.engine.decisions import Decode, Prefill, Replay


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of answers in tokens a second each, and the seconds that a question may hold up frames at a time."""

    floor: float = 4.0
    ceiling: float = 30.0
    question_budget: float = 0.03
    smallest_chunk: int = 16
    largest_chunk: int = 256


@dataclass
class Turn:
    """What is left of an answer: tokens of its question to be read; when it last got on, and when it is due."""

    left: int
    progress: float
    due: float
    shown: int = 0
    """Steps that it is still shown before its question is read."""
    opened: bool = False


class Answers:
    """Answers that are open or wait, by name, in order of asking."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.prefill_costs, self.decode_costs = Costs(), Costs()
        self.turns: dict[str, Turn] = {}
        self._prefilled_last = False

    def __bool__(self) -> bool:
        return bool(self.turns)

    @property
    def opened(self) -> int:
        """How many have a slot."""
        return sum(turn.opened for turn in self.turns.values())

    def next(self, now: float, spare: float, by: float, slots: int, show: float) -> Prefill | Decode | Replay | None:
        """What is done within `spare` seconds, or beyond them where the floor promises it until `by`.

        At most `slots` answers are open. Showing one more of the past takes `show` seconds.
        """
        name = self._question(slots)
        due = [turn for turn in self.speaking().values() if turn.due <= now]
        reads = name is not None and (
            self.prefill_costs.worst(self.pace.smallest_chunk) < spare or self._owed(self.turns[name]) <= by
        )
        speaks = bool(due) and (
            self.decode_costs.worst(len(due)) < spare or any(self._owed(turn) <= by for turn in due)
        )
        if name is not None and reads and not (speaks and self._prefilled_last):
            return self._prefill(name, now, max(spare, self.pace.question_budget))
        return self._decode(now) if speaks else self._replay(now, spare, by, slots, show)

    def speaking(self) -> dict[str, Turn]:
        """Those whose question is read."""
        return {name: turn for name, turn in self.turns.items() if turn.opened and not turn.left}

    def wake(self, now: float, slots: int) -> float:
        """When time alone makes something due; inf never."""
        times = [turn.due if turn.due > now else self._owed(turn) for turn in self.speaking().values()]
        name = self._question(slots)
        if name is not None:
            times.append(self._owed(self.turns[name]))
        times.extend(max(turn.due, now) for turn in self.turns.values() if turn.shown and turn.opened)
        return min(times, default=float("inf"))

    def _question(self, slots: int) -> str | None:
        """The answer whose question is read next: one that is half read, else the first that waits and finds a slot."""
        opened = 0
        waits = None
        for name, turn in self.turns.items():
            if turn.opened and turn.left and not turn.shown:
                return name
            opened += turn.opened
            if not turn.opened and not turn.shown and waits is None:
                waits = name
        return waits if opened < slots else None

    def _owed(self, turn: Turn) -> float:
        """When the floor promises the answer its next step."""
        return turn.progress + 1 / self.pace.floor

    def _replay(self, now: float, spare: float, by: float, slots: int, show: float) -> Replay | None:
        """The next step that an answer about the past is shown, whose pictures are looked at and taken in one after the other."""
        opened = self.opened
        for name, turn in self.turns.items():
            begun = turn.opened or opened < slots
            if turn.shown and begun and turn.due <= now and (show < spare or self._owed(turn) <= by):
                turn.opened, turn.progress = True, now
                return Replay(name)
        return None

    def _prefill(self, name: str, now: float, budget: float) -> Prefill:
        turn, pace = self.turns[name], self.pace
        tokens = min(turn.left, pace.largest_chunk)
        while tokens > pace.smallest_chunk and self.prefill_costs.worst(rounded(tokens)) > budget:
            tokens -= min(pace.smallest_chunk, tokens - pace.smallest_chunk)
        turn.opened = True
        turn.left -= tokens
        turn.progress, turn.due = now, now + 1 / pace.ceiling
        self._prefilled_last = True
        return Prefill(name, tokens)

    def _decode(self, now: float) -> Decode:
        """One token for every answer that is due, and for those that nearly are, so that they come to share steps."""
        step = 1 / self.pace.ceiling
        chosen = {name: turn for name, turn in self.speaking().items() if turn.due <= now + step / 2}
        for turn in chosen.values():
            turn.progress, turn.due = now, max(min(turn.due, now) + step, now)
        self._prefilled_last = False
        return Decode(tuple(chosen))


def rounded(tokens: int) -> int:
    """The size of a piece of a question by which its cost is known."""
    return -(-tokens // 16) * 16
