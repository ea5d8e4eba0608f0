"""Answers of random weights that keep to a form: whatever the model would say, what it says is valid."""

import json
import os
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from model import AttentionPolicy, Runner, Sampling
from model.serving.grammar import Grammar, GrammarError, Grammars, allowed
from model.tokenizer import Tokenizer

from .small import build, picture, small

CONFIG = small(policy=AttentionPolicy(sinks=5, window=30), tokens_per_frame=12)
ANSWERS = 16
LONGEST = 400


@pytest.fixture(scope="module")
def runner() -> Runner:
    """A stream in slot 0 that has seen a picture, and slots for answers."""
    tokenizer = Tokenizer.load(Path("model/nano/tokenizer.json"), CONFIG)
    runner = Runner("small", build(CONFIG), tokenizer, ANSWERS + 1, trained=False)
    runner.open(0, 90, 160)
    runner.see([0], [[picture(90, 160)]], [0.0])
    return runner


def answers(runner: Runner, grammars: list[Grammar], sampling: Sampling, longest: int = LONGEST) -> list[str | None]:
    """What is answered in each form, all at once; None for one that was cut."""
    slots = list(range(1, len(grammars) + 1))
    constraints = [grammar.begin() for grammar in grammars]
    tokens, words = [], [[] for _ in slots]
    for slot, constraint in zip(slots, constraints, strict=True):
        runner.fork(0, slot)
        seeded = Sampling(sampling.temperature, seed=None if sampling.seed is None else sampling.seed + slot)
        tokens.append(runner.prefill(slot, runner.tokenizer.encode_question("what?"), seeded, constraint))
    whole: list[str | None] = [None] * len(slots)
    going = list(range(len(slots)))
    for _ in range(longest):
        still = []
        for i in going:
            ended = tokens[i] in runner.tokenizer.stops
            if not ended:
                words[i].append(tokens[i])
                constraints[i].accept(tokens[i])
                assert constraints[i].error is None
            if ended or constraints[i].complete:
                whole[i] = runner.tokenizer.decode(words[i])
            else:
                still.append(i)
        going = still
        if not going:
            break
        next_tokens = runner.decode(
            [slots[i] for i in going],
            [tokens[i] for i in going],
            [sampling] * len(going),
            [constraints[i] for i in going],
        )
        for i, token in zip(going, next_tokens, strict=True):
            tokens[i] = token
    for slot in slots:
        runner.reset(slot)
    return whole


def bounded(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose values are all short."""
    kinds = ["integer", "boolean", "null", "string", "enum", "const", "pattern", "date", "any"]
    kind = chance.choice([*kinds, *(["object", "array", "tuple"] if depth < 2 else [])])
    match kind if depth else "object":
        case "integer":
            low = chance.randint(-1000, 1000)
            return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 5000)}
        case "boolean" | "null" as plain:
            return {"type": plain}
        case "string":
            return {"type": "string", "minLength": chance.randint(0, 3), "maxLength": chance.randint(3, 12)}
        case "enum":
            return {"enum": chance.sample(["left", "right", 'ä\n"x"', 1, 2.5, None, True, ["a"], {"b": 1}], 4)}
        case "const":
            return {"const": chance.choice(["yes", 7, False, "日本"])}
        case "pattern":
            return {
                "type": "string",
                "pattern": chance.choice(["^[A-Z]{3}-[0-9]{2}$", "^(ab|cd){1,3}$", "^#[0-9a-f]{6}$"]),
            }
        case "date":
            return {"type": "string", "format": "date"}
        case "any":
            return {"anyOf": [bounded(chance, 2), bounded(chance, 2)]}
        case "array":
            return {"type": "array", "items": bounded(chance, depth + 1), "minItems": 1, "maxItems": 3}
        case "tuple":
            return {
                "type": "array",
                "prefixItems": [bounded(chance, 2), bounded(chance, 2)],
                "items": False,
                "minItems": 2,
            }
    names = chance.sample(["what", "where", "how many", "colour", "größe", "a.b", "$id"], chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: bounded(chance, depth + 1) for name in names},
        "required": names[: chance.randint(0, len(names))],
        "additionalProperties": False,
    }


MANY = pytest.param(10_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("count", [48, MANY])
def test_answers_to_bounded_schemas_are_valid(runner: Runner, count: int) -> None:
    chance, cut, asked = random.Random(0), 0, 0
    while asked < count:
        schemas = [bounded(chance) for _ in range(ANSWERS)]
        grammars = [runner.grammars.schema(schema) for schema in schemas]
        sampling = Sampling() if asked % 64 == 0 else Sampling(temperature=1.0, seed=asked)
        for schema, text in zip(schemas, answers(runner, grammars, sampling), strict=True):
            asked += 1
            if text is None:
                cut += 1
            else:
                jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
    print(f"{asked} answers, {cut} cut")
    assert cut <= 0.05 * asked


def test_beside_others_an_answer_is_as_alone_and_the_others_are_free(runner: Runner) -> None:
    """A constrained answer in a batch with one that isn't: each as it is alone."""
    grammar = runner.grammars.schema({"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}})
    prompt = runner.tokenizer.encode_question("how many?")

    def told(*forms: Grammar | None) -> list[list[int]]:
        constraints = [form and form.begin() for form in forms]
        slots, said = [], []
        for i, constraint in enumerate(constraints):
            runner.fork(0, i + 1)
            slots.append(i + 1)
            said.append([runner.prefill(i + 1, prompt, Sampling(), constraint)])
        for _ in range(4):
            for constraint, tokens in zip(constraints, said, strict=True):
                if constraint is not None:
                    constraint.accept(tokens[-1])
            latest = runner.decode(slots, [tokens[-1] for tokens in said], [Sampling()] * len(slots), constraints)
            for tokens, token in zip(said, latest, strict=True):
                tokens.append(token)
        return said

    together = told(grammar, None)
    assert together == [*told(grammar), *told(None)] and together[0] != together[1]


def test_a_mask_leaves_what_may_come_next() -> None:
    logits, bits = torch.arange(70.0), torch.tensor([1 << 31, 5, -1], dtype=torch.int64)
    masked = allowed(logits, bits.to(torch.int32))
    assert masked.isfinite().nonzero().flatten().tolist() == [31, 32, 34, *range(64, 70)]
    assert masked[31] == 31


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown type": (
        {"properties": {"a": {"items": {"type": "intger"}}}},
        "at properties.a.items: Invalid type: intger",
    ),
    "unknown keyword": (
        {"$defs": {"x": {"not": {"type": "string"}}}, "$ref": "#/$defs/x"},
        "at $defs.x: Unimplemented keys",
    ),
    "no such definition": ({"properties": {"a": {"$ref": "#/$defs/x"}}}, "at properties.a: Pointer '/$defs/x'"),
    "an address": ({"$ref": "http://127.0.0.1/x"}, "Resource 'http://127.0.0.1/x'"),
    "nothing fits": ({"anyOf": [{"type": "string", "minLength": 5, "maxLength": 2}]}, "Unsatisfiable"),
    "a circle": ({"$ref": "#"}, "nothing satisfies it"),
    "look-ahead": (
        {"properties": {"a": {"type": "string", "pattern": "^(?=a)b$"}}},
        "at properties.a: regex parse error",
    ),
    "no expression": ({"type": "string", "pattern": "^(a"}, "unclosed group"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_schema_is_said_with_its_place(runner: Runner, name: str) -> None:
    schema, message = REFUSED[name]
    with pytest.raises(GrammarError) as told:
        runner.grammars.schema(schema)
    assert message in str(told.value) and "\n" not in str(told.value)


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def doubling(keyword: str, levels: int) -> dict[str, Any]:
    """Each definition refers to the next one twice."""
    twice = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**twice, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


HOSTILE = {
    "deep": deep(100_000),
    "deep as allowed": deep(47),
    "many choices": {"enum": [f"choice {i}" for i in range(100_000)]},
    "choices as allowed": {"enum": [f"choice {i}" * 5 for i in range(1_000)]},
    "long": {"const": "x" * 1_000_000},
    "long as allowed": {"const": "x" * 30_000},
    "all, twice": doubling("allOf", 30),
    "any, twice": doubling("anyOf", 30),
    "one, twice": doubling("oneOf", 30),
    "all in all": {"allOf": [{"properties": {f"p{j}{i}": text(f"a{i}.*b{j}") for i in range(20)}} for j in range(20)]},
    "pattern (a+)+": text("^(a+)+(a|a)*$"),
    "pattern of far back": text("^(.*a.{500}){9}$"),
    "patterns that meet": {"allOf": [text(f".*[a-m].{{{n}}}[n-z]") for n in range(30, 60)]},
    "pattern of counts": text("^(((a{1,99}){1,99}){1,99}){1,99}$"),
    "pattern of unicode": text(r"^(\w{1,900}\W{1,900}){1,900}$"),
    "long strings": {"type": "array", "items": {"type": "string", "maxLength": 10**9}, "maxItems": 10**9},
    "many properties": {"properties": {f"p{i}": text(f"x{i}.*y") for i in range(900)}, "required": ["p1", "p800"]},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": n} for n in (99991, 99989, 99971, 99961)]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_compiled_or_refused_in_time(runner: Runner, name: str) -> None:
    """Work of this process, and of the one that tries what may take any time; the first words too."""
    grammars = Grammars(runner.tokenizer, CONFIG.decoder.vocab_size)
    grammars.prepare()
    began = sum(os.times()[:4])
    try:
        constraint = grammars.schema(HOSTILE[name]).begin()
        for _ in range(20):
            mask = constraint.mask()
            if constraint.error or constraint.complete:
                break
            likely = torch.randn(CONFIG.decoder.vocab_size, generator=torch.Generator().manual_seed(0))
            constraint.accept(int(allowed(likely, mask).argmax()))
    except GrammarError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    # One of them is ended after its second; a bound that is lacking takes ten and more, that second the five of its patience.
    assert sum(os.times()[:4]) - began < 4
