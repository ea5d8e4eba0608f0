"""Qwen3.5's tools: told, called under a grammar, read as they are spoken, and given back."""

import json
import random
from typing import Any

import jsonschema
import pytest

import tests.tiny_qwen  # noqa: F401
from model import Sampling, load_runner
from model.families.qwen35_tools import QwenCalls
from model.families.tools import Arguments, CallBegun, Spoken, Tool, Words

from .small import picture

LOOK = Tool(
    "look",
    "Looks somewhere.",
    {
        "type": "object",
        "properties": {
            "where": {"enum": ["left", "right"]},
            "what": {"type": "string", "maxLength": 8},
            "times": {"type": "integer", "minimum": 1, "maximum": 30},
            "how": {"type": "object", "properties": {"far": {"type": "boolean"}}, "additionalProperties": False},
        },
        "required": ["where", "times"],
    },
)
WAIT = Tool("wait", "", {"type": "object", "properties": {}})
SAID = """Let me look.

<tool_call>
<function=look>
<parameter=what>
the "door"
and </b>
</parameter>
<parameter=times>
3
</parameter>
<parameter=how>
{"far": true}
</parameter>
</function>
</tool_call>
<tool_call>
<function=wait>
</function>
</tool_call>"""
MEANT = [
    Words("Let me look."),
    CallBegun("look"),
    Arguments('{"what": "the \\"door\\"\\nand </b>", "times": 3, "how": {"far": true}}'),
    CallBegun("wait"),
    Arguments("{}"),
]


def joined(parts: list[Spoken]) -> list[Spoken]:
    out: list[Spoken] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, Words) and isinstance(last, Words):
            out[-1] = Words(last.text + part.text)
        elif isinstance(part, Arguments) and isinstance(last, Arguments):
            out[-1] = Arguments(last.text + part.text)
        else:
            out.append(part)
    return out


def read(text: str, seed: int | None = None) -> list[Spoken]:
    """All that a parser makes of a text, in pieces of random sizes."""
    parser, chance, parts = QwenCalls({"look": LOOK.parameters}), random.Random(seed), []
    while text:
        size = len(text) if seed is None else chance.choice([1, 2, 3, 7, 30])
        parts += parser.feed(text[:size])
        text = text[size:]
    return joined([*parts, *parser.rest()])


def test_calls_are_read_the_same_in_any_pieces() -> None:
    assert read(SAID) == MEANT
    assert all(read(SAID, seed) == MEANT for seed in range(200))


def test_what_is_no_call_stays_text_and_a_call_that_is_cut_is_begun() -> None:
    assert all(read("a <tool_cal\nb < c  ", seed) == [Words("a <tool_cal\nb < c  ")] for seed in range(20))
    cut = read(SAID[: SAID.index("door") + 2])
    assert cut[1:] == [CallBegun("look"), Arguments('{"what": "the \\"do')]


def test_an_argument_that_should_be_json_and_is_not_is_a_string() -> None:
    call = "<tool_call>\n<function=look>\n<parameter=times>\nmany\n</parameter>\n</function>\n</tool_call>"
    assert read(call) == [CallBegun("look"), Arguments('{"times": "many"}')]


def test_what_a_call_cannot_be_held_to_is_refused() -> None:
    spelling = load_runner("tiny-qwen", slots=1, random_weights=True).tokenizer.prompt.tools
    assert spelling is not None
    for rules, message in (
        ({"required": ["far"]}, "required names 'far'"),
        ({"minProperties": 1}, "minProperties can't be kept to"),
    ):
        with pytest.raises(ValueError, match=message):
            spelling.grammar([Tool("look", "", {"type": "object", "properties": {"x": {}}, **rules})])


@pytest.mark.parametrize("tools", [[LOOK], [LOOK, WAIT]])
def test_a_call_of_random_weights_satisfies_its_schema(tools: list[Tool]) -> None:
    runner = load_runner("tiny-qwen", slots=2, random_weights=True)
    runner.open(0, 90, 160)
    runner.see([0], [[picture(90, 160)]], [0.0])
    spelling = runner.tokenizer.prompt.tools
    assert spelling is not None
    grammar = runner.grammars.lark(spelling.grammar(tools))
    prompt = runner.tokenizer.encode_question("What is there?", tools=tools)
    whole = 0
    for seed in range(12):
        constraint, sampling = grammar.begin(), Sampling(temperature=1.0, seed=seed)
        runner.fork(0, 1)
        tokens = [runner.prefill(1, prompt, sampling, constraint)]
        constraint.accept(tokens[0])
        while not constraint.complete and len(tokens) < 300:
            tokens += runner.decode([1], tokens[-1:], [sampling], [constraint])
            constraint.accept(tokens[-1])
            assert constraint.error is None
        runner.reset(1)
        parser = spelling.parser(tools)
        parts = joined([*parser.feed(runner.tokenizer.decode(tokens)), *parser.rest()])
        assert isinstance(parts[0], CallBegun)
        if constraint.complete:
            whole += 1
            named = next(tool for tool in tools if tool.name == parts[0].name)
            arguments: Any = parts[1]
            jsonschema.validate(json.loads(arguments.text), named.parameters)
    assert whole >= 11
