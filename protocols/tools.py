"""Tools as chat completions name them: what may be called, what must be, and what was called and came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from protocols.fields import Model, ProtocolError, Text, refusal
from protocols.question import Tool, ToolRound

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise ValueError("must be the schema of an object: its properties are the arguments")
    named = schema.get("properties", {})
    if not isinstance(named, dict) or not all(isinstance(each, dict | bool) for each in named.values()):
        raise ValueError("has properties that are no object of schemas")
    needed = schema.get("required", [])
    if not isinstance(needed, list) or not all(isinstance(each, str) for each in needed):
        raise ValueError("has required that is no list of names")
    if any(">" in name or "\n" in name for name in named):
        raise ValueError("has a property whose name holds > or a line break")
    return schema


class Function(Model):
    name: Name
    description: Text | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_object)] | None = None


class ToolEntry(Model):
    """One of a request's `tools`."""

    type: Literal["function"]
    function: Function

    def tool(self) -> Tool:
        """As the question has it."""
        function = self.function
        return Tool(
            function.name, function.description or "", function.parameters or {"type": "object", "properties": {}}
        )


class NamedFunction(Model):
    name: Text


class NamedTool(Model):
    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[list[ToolEntry], Field(max_length=64)]
ToolChoice = Literal["auto", "none", "required"] | NamedTool


class CalledFunction(Model):
    name: Text
    arguments: Text


class CalledTool(Model):
    """A call that the model made earlier, as the client gives it back."""

    id: Text = ""
    function: CalledFunction


CALLED = TypeAdapter(Annotated[list[CalledTool], Field(max_length=64)])


def chosen(entries: Sequence[ToolEntry], choice: ToolChoice | None) -> tuple[tuple[Tool, ...], bool]:
    """The tools that may be called, and whether one must be. Raises ProtocolError."""
    tools = tuple(entry.tool() for entry in entries)
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ProtocolError("invalid_value", f"Invalid value for 'tools': two are named {twice!r}.", "tools")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            known = ", ".join(names) or "none"
            raise ProtocolError(
                "invalid_value",
                f"Invalid value for 'tool_choice': no tool is named {name!r}; there are: {known}.",
                "tool_choice",
            )
        return tuple(tool for tool in tools if tool.name == name), True
    if choice == "required" and not tools:
        raise ProtocolError("invalid_value", "Invalid value for 'tool_choice': required needs 'tools'.", "tool_choice")
    return ((), False) if choice == "none" else (tools, choice == "required")


def round_of(text: str, called: Any, results: Sequence[tuple[str | None, str]], path: str) -> ToolRound:
    """One round of calls and their results (id of the call, text). Raises ProtocolError, about the message at `path`."""
    try:
        calls = CALLED.validate_python(called)
    except ValidationError as error:
        param = f"{path}.tool_calls{refusal(error, called).param or ''}"
        why = f"Invalid value for '{param}': it is no call with a function's name and arguments."
        raise ProtocolError("invalid_value", why, param) from None
    order = {call.id: i for i, call in enumerate(calls)}
    unknown = next((id for id, _ in results if id not in order), None)
    if unknown is not None or len(results) != len(calls):
        why = f"{unknown!r} names no call" if unknown is not None else f"{len(calls)} calls have {len(results)} results"
        raise ProtocolError("invalid_value", f"The tools' results do not fit '{path}.tool_calls': {why}.", path)
    made: list[tuple[str, dict[str, Any]]] = []
    for i, call in enumerate(calls):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            param = f"{path}.tool_calls[{i}].function.arguments"
            raise ProtocolError("invalid_value", f"Invalid value for '{param}': it is no JSON object.", param)
        made.append((call.function.name, arguments))
    told = sorted(results, key=lambda result: order[result[0] or ""])
    return ToolRound(text, tuple(made), tuple(text for _, text in told))
