"""What was said in one session: items in order, and the bounded transcript that a question carries along."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from protocols.fields import Picture
from protocols.question import Attachment, Question

Role = Literal["system", "user", "assistant"]


class ItemView(TypedDict):
    """Object `realtime.item`, as the wire shows it."""

    id: str
    object: Literal["realtime.item"]
    type: Literal["message"]
    status: Literal["completed", "incomplete", "in_progress"]
    role: Role
    content: list[dict[str, Any]]


@dataclass(slots=True)
class Item:
    """One message of a conversation.

    `status` is in_progress while an answer is being spoken.
    """

    id: str
    role: Role
    text: str = ""
    images: tuple[Picture, ...] = ()
    status: Literal["completed", "incomplete", "in_progress"] = "completed"

    @property
    def characters(self) -> int:
        return len(self.text) + sum(len(image.text) for image in self.images)

    def view(self, *, content: bool = True) -> ItemView:
        """The item as the wire shows it; without content where an answer only begins."""
        parts: list[dict[str, Any]] = []
        if content:
            kind = "output_text" if self.role == "assistant" else "input_text"
            parts = [{"type": "input_image", "image_url": image.text} for image in self.images]
            if self.text or not parts:
                parts.append({"type": kind, "text": self.text})
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": parts,
        }


@dataclass(slots=True)
class Conversation:
    """Items in order, at most `limit` of them, which hold at most `characters` (pictures included)."""

    limit: int = 64
    characters: int = 4_000_000
    items: list[Item] = field(default_factory=list)

    def find(self, item_id: str) -> Item | None:
        return next((item for item in self.items if item.id == item_id), None)

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


def read_question(items: list[Item], characters: int) -> Question:
    """The question that a list of items ends with, and its history, at most `characters` long, newest kept.

    A user message whose answer never came is joined to the next user message; system messages become instructions.
    """
    system: list[str] = []
    history: list[tuple[str, str]] = []
    words: list[str] = []
    images: list[Picture] = []
    for item in items:
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
