"""Tools as the dialects name them: what may be called, what must be, and what was called and came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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

    def tool(self, param: str) -> Tool:
        """As the question has it; `param` is the path of this entry of `tools`."""
        schema = self.parameters or {"type": "object", "properties": {}}
        return Tool(self.name, self.description or "", schema, f"{param}.parameters")


class ToolEntry(Model):
    """One of a chat's `tools`."""

    type: Literal["function"]
    function: Function

    def tool(self, param: str) -> Tool:
        """As the question has it; `param` is the path of this entry of `tools`."""
        return self.function.tool(f"{param}.function")


class _Typed(Model):
    """Apart, so that of a tool of another type that is told first, and not what it lacks of a function."""

    type: Literal["function"]


class FlatTool(Function, _Typed):
    """One of the `tools` of a response or a realtime session."""


class NamedFunction(Model):
    name: Text


class NamedTool(Model):
    type: Literal["function"]
    function: NamedFunction


class FlatNamedTool(NamedFunction):
    type: Literal["function"]


Tools = Annotated[list[ToolEntry], Field(max_length=64)]
FlatTools = Annotated[list[FlatTool], Field(max_length=64)]
ToolChoice = Literal["auto", "none", "required"] | NamedTool
FlatToolChoice = Literal["auto", "none", "required"] | FlatNamedTool


@dataclass(frozen=True, slots=True)
class Called:
    """A call that the model made earlier, as the client gives it back; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Result:
    """What came of the call of this id."""

    call_id: str
    text: str


class CalledFunction(Model):
    name: Text
    arguments: Text


class CalledTool(Model):
    """A call in a chat's message."""

    id: Text = ""
    function: CalledFunction


CALLED = TypeAdapter(Annotated[list[CalledTool], Field(max_length=64)])


def chosen(
    entries: Sequence[ToolEntry | FlatTool], choice: ToolChoice | FlatToolChoice | None, within: str = ""
) -> tuple[tuple[Tool, ...], bool]:
    """The tools that may be called, and whether one must be. Paths are told `within` another. Raises ProtocolError."""
    tools = tuple(entry.tool(f"{within}tools[{i}]") for i, entry in enumerate(entries))
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(f"{within}tools", f"two are named {twice!r}")
    if isinstance(choice, NamedTool | FlatNamedTool):
        name = (choice.function if isinstance(choice, NamedTool) else choice).name
        if name not in names:
            known = ", ".join(names) or "none"
            raise _invalid(f"{within}tool_choice", f"no tool is named {name!r}; there are: {known}")
        return tuple(tool for tool in tools if tool.name == name), True
    if choice == "required" and not tools:
        raise _invalid(f"{within}tool_choice", "required needs 'tools'")
    return ((), False) if choice == "none" else (tools, choice == "required")


def _invalid(param: str, why: str) -> ProtocolError:
    return ProtocolError("invalid_value", f"Invalid value for '{param}': {why}.", param)


def chat_round(text: str, called: Any, results: Sequence[Result], path: str) -> ToolRound:
    """One round of a chat's `tool_calls` and their results. Raises ProtocolError, about the message at `path`."""
    try:
        calls = CALLED.validate_python(called)
    except ValidationError as error:
        param = f"{path}.tool_calls{refusal(error, called).param or ''}"
        raise _invalid(param, "it is no call with a function's name and arguments") from None
    made = [Called(call.id, call.function.name, call.function.arguments) for call in calls]
    return round_of(text, made, results, path)


def round_of(text: str, calls: Sequence[Called], results: Sequence[Result], path: str | None = None) -> ToolRound:
    """One round of calls and their results. Raises ProtocolError, about a chat's message at `path` where there is one."""
    order = {call.id: i for i, call in enumerate(calls)}
    unknown = [each.call_id for each in results if each.call_id not in order]
    if unknown or len(results) != len(calls):
        why = f"{unknown[0]!r} names no call" if unknown else f"{len(calls)} calls have {len(results)} results"
        fit = "the calls" if path is None else f"'{path}.tool_calls'"
        raise ProtocolError("invalid_value", f"The tools' results do not fit {fit}: {why}.", path)
    made: list[tuple[str, dict[str, Any]]] = []
    for i, call in enumerate(calls):
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            if path is None:
                why = f"The arguments of call {call.id!r} are no JSON object."
                raise ProtocolError("invalid_value", why)
            raise _invalid(f"{path}.tool_calls[{i}].function.arguments", "it is no JSON object")
        made.append((call.name, arguments))
    told = sorted(results, key=lambda result: order[result.call_id])
    return ToolRound(text, tuple(made), tuple(result.text for result in told))
