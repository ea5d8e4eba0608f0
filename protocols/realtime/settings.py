"""What a realtime session is set to: the `session` that a client sees and changes, and the tools that may be called."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from protocols.fields import ProtocolError
from protocols.json_format import TextSettings
from protocols.question import Tool
from protocols.realtime.client_events import ResponseSettings, SessionSettings
from protocols.realtime.server_events import SessionView
from protocols.tools import FlatTool, FlatToolChoice, chosen

INSTRUCTIONS = ""
DEFAULTS: dict[str, Any] = {
    "instructions": INSTRUCTIONS,
    "max_output_tokens": "inf",
    "output_modalities": ["text"],
}
"""What a key is that a client sets to null; null where it isn't here."""
BETA = {"modalities": "output_modalities", "max_response_output_tokens": "max_output_tokens"}


class Settings:
    """One session's settings. `view` is replaced where they change, so that what was told of them stays as it was."""

    def __init__(self, id: str, model: str, stream: str | None, *, calls_tools: bool) -> None:
        """`model` is the name that the client sees; `calls_tools` whether it can."""
        self.text = TextSettings()
        self._calls_tools = calls_tools
        self._tools: list[FlatTool] = []
        self._tool_choice: FlatToolChoice = "auto"
        self.view: SessionView = {
            "type": "realtime",
            "object": "realtime.session",
            "id": id,
            "model": model,
            "output_modalities": ["text"],
            "instructions": INSTRUCTIONS,
            "max_output_tokens": "inf",
            "temperature": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "auto",
            "text": {},
            "stream": stream,
        }

    def take(self, asked: SessionSettings, given: Collection[str]) -> None:
        """Takes those keys of `asked` that were `given`, but for the tools, which `choose` takes."""
        changed = {key: getattr(asked, key) for key in set(given) - {"type", "model", "tools", "tool_choice"}}
        for beta, key in BETA.items():
            if beta in changed:
                changed.setdefault(key, changed.pop(beta))
        if "text" in changed:
            self.text = changed.pop("text") or TextSettings()
            changed["text"] = self.text.model_dump(by_alias=True, exclude_none=True)
        settled = {key: DEFAULTS.get(key) if value is None else value for key, value in changed.items()}
        choice = self._tool_choice
        settled |= {
            "tools": [tool.model_dump(exclude_none=True) for tool in self._tools],
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        }
        self.view = cast(SessionView, {**self.view, **settled})

    def choose(self, asked: SessionSettings, given: Collection[str]) -> None:
        """Takes the session's tools and which of them is to be called. Raises ProtocolError."""
        tools = (asked.tools or []) if "tools" in given else self._tools
        choice = (asked.tool_choice or "auto") if "tool_choice" in given else self._tool_choice
        if tools and not self._calls_tools:
            raise ProtocolError("no_tools", "This model calls no tools: leave them out.", "session.tools")
        chosen(tools, choice, "session.")
        self._tools, self._tool_choice = tools, choice

    def leave(self) -> None:
        """The session's stream is no more."""
        self.view = {**self.view, "stream": None}

    def callable(self, asked: ResponseSettings) -> tuple[tuple[Tool, ...], bool]:
        """The tools that may be called: the response's own, else the session's; and whether one must be. Raises ProtocolError."""
        own = asked.tools is not None or asked.tool_choice is not None
        tools = self._tools if asked.tools is None else asked.tools
        return chosen(tools, asked.tool_choice or self._tool_choice, "response." if own else "session.")
