"""What was said in one session: items in order, and the bounded transcript that a question carries along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NotRequired, TypedDict, cast

from protocols.fields import Picture
from protocols.question import Attachment, Question, ToolRound
from protocols.tools import Called, Result, round_of

Role = Literal["system", "user", "assistant"]
Kind = Literal["message", "function_call", "function_call_output"]


class ItemView(TypedDict):
    """Object `realtime.item`, as the wire shows it: a message, a call of a tool, or what came of one."""

    id: str
    object: Literal["realtime.item"]
    type: Kind
    status: Literal["completed", "incomplete", "in_progress"]
    role: NotRequired[Role]
    content: NotRequired[list[dict[str, Any]]]
    call_id: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[str]
    output: NotRequired[str]


@dataclass(slots=True)
class Item:
    """One message of a conversation, a call in it (`name`; its arguments are the text), or a call's result (the text).

    `status` is in_progress while an answer is being spoken.
    """

    id: str
    role: Role
    text: str = ""
    images: tuple[Picture, ...] = ()
    status: Literal["completed", "incomplete", "in_progress"] = "completed"
    kind: Kind = "message"
    call_id: str = ""
    name: str = ""

    @property
    def characters(self) -> int:
        return len(self.text) + sum(len(image.text) for image in self.images)

    def view(self, *, content: bool = True) -> ItemView:
        """The item as the wire shows it; without content where an answer only begins."""
        if self.kind == "function_call":
            told: dict[str, str] = {"call_id": self.call_id, "name": self.name, "arguments": self.text}
            return cast(ItemView, {**self._head(), **told})
        if self.kind == "function_call_output":
            return cast(ItemView, {**self._head(), "call_id": self.call_id, "output": self.text})
        parts: list[dict[str, Any]] = []
        if content:
            kind = "output_text" if self.role == "assistant" else "input_text"
            parts = [{"type": "input_image", "image_url": image.text} for image in self.images]
            if self.text or not parts:
                parts.append({"type": kind, "text": self.text})
        return cast(ItemView, {**self._head(), "role": self.role, "content": parts})

    def _head(self) -> dict[str, str]:
        return {"id": self.id, "object": "realtime.item", "type": self.kind, "status": self.status}


@dataclass(slots=True)
class Conversation:
    """Items in order, at most `limit` of them, which hold at most `characters` (pictures included)."""

    limit: int = 64
    characters: int = 4_000_000
    items: list[Item] = field(default_factory=list)

    def find(self, item_id: str) -> Item | None:
        return next((item for item in self.items if item.id == item_id), None)

    def before(self, item: Item) -> str | None:
        """The id of the item before this one."""
        place = self.items.index(item)
        return self.items[place - 1].id if place else None

    def insert(self, item: Item, after: str | None = None) -> str | None:
        """Places an item and returns the id of the one before it. `after` is an id, "root", or None for the end.

        Raises:
            KeyError: `after` names no item.
        """
        place = len(self.items)
        if after == "root":
            place = 0
        elif after is not None:
            place = 1 + next((index for index, other in enumerate(self.items) if other.id == after), -1)
            if place == 0:
                raise KeyError(after)
        self.items.insert(place, item)
        return self.items[place - 1].id if place else None

    def trim(self) -> list[Item]:
        """Forgets the oldest items over the limits (never the newest, nor one still being spoken) and returns them."""
        gone: list[Item] = []
        held = sum(item.characters for item in self.items)
        while len(self.items) > 1 and self.items[0].status != "in_progress":
            if len(self.items) <= self.limit and held <= self.characters:
                break
            gone.append(self.items.pop(0))
            held -= gone[-1].characters
        return gone


def read_question(items: Sequence[Item], characters: int, *, tools: bool = False) -> Question:
    """The question that a list of items ends with, and its history, at most `characters` long, newest kept.

    A user message whose answer never came is joined to the next user message; system messages become instructions. Where
    `tools` may be called, what was called since the question and came of it are its rounds; all other results are the
    user's words. Raises ProtocolError where results and calls do not fit.
    """
    asked, rounds = _rounds(items) if tools else (items, [])
    return replace(_read(asked, characters), rounds=tuple(rounds))


def _rounds(items: Sequence[Item]) -> tuple[Sequence[Item], list[ToolRound]]:
    """The items up to the last question, and the rounds behind it; none where that was answered in words."""
    last = max((i for i, item in enumerate(items) if item.kind == "message" and item.role == "user"), default=-1)
    rounds: list[ToolRound] = []
    words: list[str] = []
    calls: list[Called] = []
    results: list[Result] = []

    def complete() -> None:
        if calls or results:
            rounds.append(round_of("\n".join(filter(None, words)), calls, results))
            words.clear()
        calls.clear()
        results.clear()

    for item in items[last + 1 :]:
        if item.kind == "function_call_output":
            results.append(Result(item.call_id, item.text))
        elif item.role == "assistant" and item.status != "in_progress":
            if results:
                complete()
            if item.kind == "message":
                words.append(item.text)
            elif item.status == "completed":
                calls.append(Called(item.call_id, item.name, item.text))
    complete()
    if any(words):
        return items, []
    system = [item for item in items[last + 1 :] if item.role == "system"]
    return [*items[: last + 1], *system], rounds


def _read(items: Sequence[Item], characters: int) -> Question:
    # No answer yet, but the wordless beginning of a call, whose result belongs to the same question.
    begun = {item.id for item, then in pairwise(items) if then.kind == "function_call" and not item.text}
    system: list[str] = []
    history: list[tuple[str, str]] = []
    words: list[str] = []
    images: list[Picture] = []
    for item in items:
        if item.kind == "function_call" or (item.role == "assistant" and item.id in begun):
            continue
        if item.role == "system":
            system.append(item.text)
        elif item.role == "user":
            words.append(item.text)
            images.extend(item.images)
        elif item.status != "in_progress":
            if words and item.text:
                history.append(("\n".join(filter(None, words)), item.text))
            words, images = [], []
    kept: list[tuple[str, str]] = []
    for question, answer in reversed(history):
        characters -= len(question) + len(answer)
        if characters < 0:
            break
        kept.append((question, answer))
    return Question(
        "\n".join(filter(None, words)),
        instructions="\n".join(filter(None, system)),
        history=tuple(reversed(kept)),
        attachments=tuple(Attachment("image", image.data) for image in images),
    )
