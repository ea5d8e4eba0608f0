"""Answers that keep to a form: JSON schemas and grammars compiled by llguidance, and masks of the tokens that may come next.

Masks are made on a thread of their own while the device computes: a matcher releases Python's lock as it works.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from torch import Tensor

from model.tokenizer import Tokenizer

BOUNDS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""What a schema may cost to compile and to follow: whatever exceeds it is refused in a fraction of a second."""
LIMITS = LLParserLimits(**BOUNDS)
STYLE: Any = {"whitespace_flexible": True, "whitespace_pattern": " ?", "coerce_one_of": False}
"""At most one space between JSON's signs: more would let an answer fill its length with nothing."""
MOST_CHARACTERS = 32_768
MOST_NESTED = 48
"""Levels of lists and objects: a schema within `properties` is two below the one that holds it."""
MOST_PARTS = 10_000
MOST_CHOICES = 1_000
MOST_PATTERN = 1_000
TRIAL = Path(__file__).with_name("grammar_trial.py")
TRIAL_SECONDS = 5.0
COMBINING = frozenset({"allOf", "patternProperties", "propertyNames", "multipleOf"})
ALONE = frozenset({"$ref", "$dynamicRef", "anyOf", "oneOf", "pattern", "format", "properties", "enum", "const"})
KEPT = 16
"""Compiled forms that are kept for the next question with the same one."""
SIGNS = b'{}[]":,-.0123456789truefalsn'
"""What JSON can't be spelled without."""


class GrammarError(ValueError):
    """A form that can't be followed, in one line. `path` is where in the schema, "" for the whole."""

    def __init__(self, message: str, path: str = "") -> None:
        self.path = path
        super().__init__(f"at {path}: {message}" if path else message)


class Constraint:
    """One answer's progress through a form; one thread at a time may use it.

    `complete` says whether the form is satisfied and nothing more may follow, `error` in one line why the answer can't go on.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int, pool: ThreadPoolExecutor) -> None:
        self._matcher, self._vocabulary, self._pool = matcher, vocabulary, pool
        self.complete = False
        self.error: str | None = None
        self._mask: Future[Tensor] = pool.submit(self._fill)

    def mask(self) -> Tensor:
        """The tokens that may come next, a bit each, the lowest first: int32 [ceil(vocabulary / 32)]."""
        return self._mask.result()

    def accept(self, token: int) -> None:
        """Goes on with `token`; the next mask is begun. Call it once the mask that `token` was drawn with has been asked for."""
        self._mask.result()
        if not self._matcher.consume_token(token):
            self.error = brief(self._matcher.get_error())
        elif self._matcher.is_stopped():
            self.complete = True
        else:
            self._mask = self._pool.submit(self._fill)

    def _fill(self) -> Tensor:
        words = allocate_token_bitmask(1, self._vocabulary)
        fill_next_token_bitmask(self._matcher, words)
        return torch.from_numpy(words[0])


class Grammar:
    """A compiled form."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, pool: ThreadPoolExecutor) -> None:
        self._matcher, self._vocabulary, self._pool = matcher, vocabulary, pool

    def begin(self) -> Constraint:
        """For one answer."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary, self._pool)


class Grammars:
    """Compiles forms for one tokenizer; any thread may call it.

    Args:
        size: the model's vocabulary, padding included.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, "mask")

    def prepare(self) -> None:
        """Reads the vocabulary, once: a second for a quarter of a million tokens."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = LLTokenizer(
                    TokenizerWrapper(_Vocabulary(self._tokenizer, self._size)),
                    eos_token=sorted(self._tokenizer.stops),
                )

    def schema(self, schema: Mapping[str, Any]) -> Grammar:
        """The JSON values that a schema allows. Raises GrammarError."""
        self.prepare()
        check(schema)
        self._spells()
        grammar = json_grammar(schema)
        if combines(schema) and grammar not in self._kept:
            attempt(grammar)
        return self._compiled(grammar, schema)

    def lark(self, source: str) -> Grammar:
        """What a grammar in llguidance's Lark allows. Raises GrammarError."""
        self.prepare()
        grammar = LLMatcher.grammar_from_lark(source)
        if grammar not in self._kept:
            attempt(grammar)
        return self._compiled(grammar, {})

    def check(self, schema: Mapping[str, Any], strict: bool = False) -> None:
        """Refuses what is no schema, and where `strict` what it says beyond what an answer can be held to. Raises GrammarError."""
        self.prepare()
        assert self._vocabulary is not None
        check(schema)
        grammar = json_grammar(schema, lenient=not strict)
        if combines(schema):
            attempt(grammar)
        if error := LLMatcher(self._vocabulary, grammar, log_level=0, limits=LIMITS).get_error():
            raise GrammarError(brief(error), self._place(schema, error))

    def _spells(self) -> None:
        known = {self._tokenizer.spelling(token) for token in range(self._size)} if self._size <= 4096 else None
        lacking = [chr(sign) for sign in SIGNS if known is not None and bytes([sign]) not in known]
        if lacking:
            raise GrammarError(f"the model's vocabulary can't spell JSON: it has no {' '.join(lacking)}")

    def _compiled(self, grammar: str, schema: Mapping[str, Any]) -> Grammar:
        assert self._vocabulary is not None
        with self._lock:
            if (found := self._kept.get(grammar)) is not None:
                self._kept.move_to_end(grammar)
                return found
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=LIMITS)
        trial = matcher.deep_copy()
        if not trial.is_error():
            trial.compute_bitmask()
        if error := trial.get_error():
            raise GrammarError(brief(error), self._place(schema, error))
        compiled = Grammar(matcher, self._size, self._pool)
        with self._lock:
            self._kept[grammar] = compiled
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _place(self, schema: Mapping[str, Any], error: str) -> str:
        """The path of the smallest part of a schema that fails with the same error when it stands alone."""
        shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        path, part, deeper = "", schema, True
        while deeper:
            deeper = False
            for name, child in parts(part):
                if (
                    LLMatcher.validate_grammar(json_grammar({**shared, **child}), self._vocabulary, limits=LIMITS)
                    == error
                ):
                    path, part, deeper = f"{path}.{name}" if path else name, child, True
                    break
        return path


class _Vocabulary:
    """A tokenizer as llguidance reads one: the bytes of each token; special ones, which no text spells, by name."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer = tokenizer
        self.eos_token_id = tokenizer.turn_end
        self.special_token_ids = sorted(tokenizer.specials)
        named = {token: str(tokenizer.inner.id_to_token(token)).encode() for token in tokenizer.specials}
        self.tokens = [named.get(token) or tokenizer.spelling(token) for token in range(size)]

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenizer.encode(text.decode("utf-8", "replace"))


def attempt(grammar: str) -> None:
    """Compiles a grammar in a process that may be ended. Raises GrammarError where it takes too much time or memory."""
    asked = json.dumps({"grammar": grammar, "limits": BOUNDS})
    try:
        done = subprocess.run(
            [sys.executable, "-I", TRIAL],
            input=asked,
            text=True,
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise GrammarError(
            "its parts take too long to combine: let fewer patterns, lengths and allOf hold of one value"
        )


def combines(schema: Mapping[str, Any]) -> bool:
    """Whether several rules hold of one value, which may cost any time."""
    keys = schema.keys()
    return bool(
        keys & COMBINING
        or len(keys & ALONE) > 1
        or (keys & {"pattern", "format"} and keys & {"minLength", "maxLength"})
        or any(combines(part) for _, part in parts(schema))
    )


def json_grammar(schema: Mapping[str, Any], lenient: bool = False) -> str:
    """llguidance's grammar of a schema; a `lenient` one leaves out what it can't follow."""
    style: Any = {**STYLE, "lenient": lenient}
    grammar: str = LLMatcher.grammar_from_json_schema(dict(schema), overrides=style)
    return grammar


def allowed(logits: Tensor, mask: Tensor) -> Tensor:
    """`logits` float32 [vocabulary] with -inf for each token whose bit in `mask` (see `Constraint.mask`) is 0."""
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    bits = (mask.to(logits.device, non_blocking=True)[:, None] >> shifts) & 1
    return logits.masked_fill(bits.flatten()[: len(logits)] == 0, float("-inf"))


def constrained(logits: Tensor, constraint: Constraint | None) -> Tensor:
    """`logits` float32 [vocabulary] of what a constraint allows; its mask was made while the device computed them."""
    return logits if constraint is None else allowed(logits, constraint.mask())


def brief(error: str) -> str:
    """An error of llguidance's in one line."""
    lines = [line.strip() for line in error.splitlines() if line.strip() and not line.startswith("<")]
    if not lines:
        return "it can't be followed"
    if "NoExtension" in lines[0]:
        return "nothing satisfies it that this model could say"
    if lines[0].endswith(":") and len(lines) > 1:  # regular expressions: the last line says what is wrong
        return f"{lines[0]} {lines[-1].removeprefix('error: ')}"
    return lines[0]


MAPS = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
ONES = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas within a schema, by their path in it."""
    for key in MAPS:
        if isinstance(found := schema.get(key), dict):
            yield from ((f"{key}.{name}", child) for name, child in found.items() if isinstance(child, dict))
    for key in LISTS:
        if isinstance(found := schema.get(key), list):
            yield from ((f"{key}[{i}]", child) for i, child in enumerate(found) if isinstance(child, dict))
    for key in ONES:
        if isinstance(found := schema.get(key), dict):
            yield key, found


def check(schema: Mapping[str, Any]) -> None:
    """Refuses what is too large to be compiled in time. Raises GrammarError."""
    waiting: list[tuple[str, Any, int]] = [("", schema, 0)]
    seen = characters = 0
    while waiting:
        path, value, depth = waiting.pop()
        seen += 1 + (len(value) if isinstance(value, list | dict) else 0)
        if depth > MOST_NESTED:
            raise GrammarError(f"it is nested too deep, {MOST_NESTED} levels are allowed", shown(path))
        if seen > MOST_PARTS:
            raise GrammarError(f"it has too many parts, {MOST_PARTS} are allowed in a schema", shown(path))
        if isinstance(value, dict):
            choices, pattern = value.get("enum"), value.get("pattern")
            if isinstance(choices, list) and len(choices) > MOST_CHOICES:
                raise GrammarError(f"enum has {len(choices)} values, {MOST_CHOICES} are allowed", shown(path))
            if isinstance(pattern, str) and len(pattern) > MOST_PATTERN:
                raise GrammarError(f"pattern has {len(pattern)} characters, {MOST_PATTERN} are allowed", shown(path))
            characters += sum(map(len, value))
            waiting += [(f"{path}.{key}" if path else key, child, depth + 1) for key, child in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{i}]", child, depth + 1) for i, child in enumerate(value)]
        elif isinstance(value, str):
            characters += len(value)
        if characters > MOST_CHARACTERS:
            raise GrammarError(f"the schema is too long, {MOST_CHARACTERS} characters are allowed")


def shown(path: str) -> str:
    """A path that fits into a line."""
    return path if len(path) <= 100 else f"{path[:48]}…{path[-48:]}"
