"""Qwen3.5's tools: told as JSON, called in XML, whose values are plain text where the schema says string and JSON elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from model.families.tools import Arguments, CallBegun, Round, Spoken, Tool, Words
from model.families.vocabulary import Vocabulary

TOLD = """# Tools

You have access to the following functions:

<tools>
{tools}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user about function calls
</IMPORTANT>"""  # noqa: E501
"""The words that the family was trained with."""
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
BEGIN, END = "<tool_call>", "</parameter>"
HEAD = re.compile(r"\s*<function=([^>\n]*)>(?:\n|(?=.))", re.DOTALL)
PARAMETER = re.compile(r"\s*<parameter=([^>\n]*)>(?:\n|(?=.))", re.DOTALL)
CLOSED = re.compile(r"\s*</function>\s*(</tool_call>)")
UNKEPT = ("anyOf", "oneOf", "allOf", "not", "if", "$ref", "minProperties", "dependentRequired", "dependentSchemas")
"""What a schema of arguments may say of several of them at once, which their spelling one by one can't be held to."""


class QwenTools:
    """See `model.families.tools.ToolFormat`; what users and tools say spells no token."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self.encode = tokenizer.encode
        known = {mark: tokenizer.id_of(mark) for mark in MARKS}
        self.marks = {mark: tokenizer.encode(mark) if token is None else [token] for mark, token in known.items()}

    def told(self, tools: Sequence[Tool]) -> list[int]:
        """See `ToolFormat.told`."""
        lead, tail = TOLD.split("{tools}")
        lines = "\n".join(json.dumps(described(tool), ensure_ascii=False) for tool in tools)
        return [*self.marked(lead), *self.encode(lines), *self.marked(tail)]

    def answered(self, turn: Round) -> tuple[list[int], list[int]]:
        """See `ToolFormat.answered`."""
        said = self.encode(turn.text.strip() + "\n\n") if turn.text.strip() else []
        for i, (name, arguments) in enumerate(turn.calls):
            said += [*self.encode("\n") * (i > 0), *self.marks["<tool_call>"]]
            values = "".join(f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in arguments.items())
            said += [*self.encode(f"\n<function={name}>\n{values}</function>\n"), *self.marks["</tool_call>"]]
        came: list[int] = []
        for i, result in enumerate(turn.results):
            came += [*self.encode("\n") * (i > 0), *self.marks["<tool_response>"]]
            came += [*self.encode(f"\n{result}\n"), *self.marks["</tool_response>"]]
        return said, came

    def marked(self, text: str) -> list[int]:
        """Ids of words of the family's own, whose marks are tokens."""
        ids: list[int] = []
        for part in re.split("(" + "|".join(MARKS) + ")", text):
            ids += self.marks[part] if part in self.marks else self.encode(part)
        return ids

    def grammar(self, tools: Sequence[Tool]) -> str:
        """See `ToolFormat.grammar`."""
        rules = ["start: " + " | ".join(f"call{i}" for i in range(len(tools)))]
        for i, tool in enumerate(tools):
            given = tool.parameters.get("properties", {})
            needed = tool.parameters.get("required", [])
            if lacking := [key for key in needed if key not in given]:
                raise ValueError(
                    f"required names {lacking[0]!r}, which is not among properties: add it there, or leave it out"
                )
            if unkept := [key for key in UNKEPT if key in tool.parameters]:
                raise ValueError(f"{unkept[0]} can't be kept to in a call: leave it out, or let tool_choice be 'auto'")
            parts = " ".join(f"p{i}x{j}" + ("" if key in needed else "?") for j, key in enumerate(given))
            head, tail = quoted(f"<tool_call>\n<function={tool.name}>\n"), quoted("</function>\n</tool_call>")
            rules.append(f"call{i}: {head} {parts} {tail}")
            shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
            for j, (key, schema) in enumerate(given.items()):
                value = written(key, {**shared, **schema} if isinstance(schema, Mapping) else {})
                rules.append(
                    f"p{i}x{j}: {quoted(f'<parameter={key}>' + chr(10))} {value} {quoted(chr(10) + END + chr(10))}"
                )
        rules.append(r"PLAIN: /([^<]|<[^\/])*/")
        return "\n".join(rules) + "\n"

    def parser(self, tools: Sequence[Tool]) -> QwenCalls:
        """See `ToolFormat.parser`."""
        return QwenCalls({tool.name: tool.parameters for tool in tools})


def described(tool: Tool) -> dict[str, Any]:
    """A tool as the model reads it."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def plain(value: Any) -> str:
    """A value as calls spell it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def quoted(text: str) -> str:
    """A literal of Lark."""
    return json.dumps(text)


def texts(schema: Mapping[str, Any]) -> bool:
    """Whether a schema's values are strings, so that they are spelled as they are."""
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices is not None:
        return all(isinstance(choice, str) for choice in choices)
    return schema.get("type") == "string"


def written(key: str, schema: Mapping[str, Any]) -> str:
    """The expression of Lark for a value. Raises ValueError for a string of rules that only JSON's spelling can be held to."""
    if not texts(schema):
        return "%json " + json.dumps(dict(schema))
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices is not None:
        return "(" + " | ".join(quoted(choice) for choice in choices) + ")"
    low, high = schema.get("minLength", 0), schema.get("maxLength", "")
    if schema.keys() & {"pattern", "format"}:
        raise ValueError(f"at properties.{key}: a string's pattern or format can't be kept to in a call: leave it out")
    return "PLAIN" if not low and high == "" else f"/[^<]{{{int(low)},{high}}}/"


class QwenCalls:
    """Reads `<tool_call>…` out of an answer's text. See `CallParser`."""

    def __init__(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        self.parameters = parameters
        self.kept, self.name, self.state = "", "", "text"
        self.key, self.value, self.count = "", "", 0

    def feed(self, text: str) -> list[Spoken]:
        """See `CallParser.feed`."""
        self.kept += text
        out: list[Spoken] = []
        while self.step(out):
            pass
        return out

    def rest(self) -> list[Spoken]:
        """See `CallParser.rest`."""
        kept, self.kept = self.kept.rstrip() if self.name else self.kept, ""
        return [Words(kept)] if self.state == "text" and kept else []

    def step(self, out: list[Spoken]) -> bool:
        """One transition; False where more text is needed."""
        if self.state == "text":
            return self.words(out)
        if self.state == "value":
            return self.more(out)
        if self.state == "head":
            if (found := HEAD.match(self.kept)) is None:
                return False
            self.name, self.count, self.state = found[1], 0, "call"
            out += [CallBegun(self.name), Arguments("{")]
        elif (found := PARAMETER.match(self.kept)) is not None:
            self.key, self.value, self.state = found[1], "", "value"
            out.append(Arguments((", " if self.count else "") + json.dumps(self.key, ensure_ascii=False) + ": "))
            self.count += 1
            if self.spelled:
                out.append(Arguments('"'))
        elif (found := CLOSED.match(self.kept)) is not None:
            self.state = "text"
            out.append(Arguments("}"))
        else:
            return False
        self.kept = self.kept[found.end() :]
        return True

    @property
    def spelled(self) -> bool:
        """Whether the parameter that is being read is a string."""
        schema = self.parameters.get(self.name, {}).get("properties", {}).get(self.key, {})
        return isinstance(schema, Mapping) and texts(schema)

    def words(self, out: list[Spoken]) -> bool:
        """Text up to the next call; white space before it is kept back, for none is shown there."""
        at = self.kept.find(BEGIN)
        if at >= 0:
            text, self.kept, self.state = self.kept[:at].rstrip(), self.kept[at + len(BEGIN) :], "head"
        else:
            end = len(self.kept) - begun(self.kept, BEGIN)
            text = self.kept[:end].rstrip()
            self.kept = self.kept[len(text) :]
        if text:
            out.append(Words(text))
        return at >= 0

    def more(self, out: list[Spoken]) -> bool:
        """More of a parameter's value, which ends before `</parameter>` and the line break in front of it."""
        at = self.kept.find(END)
        shown = (
            self.kept[:at].removesuffix("\n") if at >= 0 else self.kept[: len(self.kept) - begun(self.kept, "\n" + END)]
        )
        if at < 0:
            shown = shown[: len(shown) - begun(shown, END)]
        self.kept = self.kept[at + len(END) if at >= 0 else len(shown) :]
        if self.spelled:
            if shown:
                out.append(Arguments(json.dumps(shown, ensure_ascii=False)[1:-1]))
            if at >= 0:
                out.append(Arguments('"'))
        else:
            self.value += shown
            if at >= 0:
                out.append(Arguments(as_json(self.value)))
        if at >= 0:
            self.state = "call"
        return at >= 0


def as_json(text: str) -> str:
    """A value that should be JSON, and is a string where it isn't."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return text.strip()


def begun(text: str, mark: str) -> int:
    """How many of the last characters of `text` could begin `mark`."""
    most = min(len(text), len(mark) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)
