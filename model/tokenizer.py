"""Text to token ids and back: a checkpoint's tokenizer.json, with the words that its family puts around frames and questions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tokenizers

from model.config import ConfigError, InfiniteVLConfig
from model.families.family import FAMILIES
from model.families.tools import Round, Tool

PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
BYTES = {chr(byte): byte for byte in PRINTABLE}
"""The byte that each character of a byte-level vocabulary stands for (GPT-2's: a printable byte is itself, the rest follow from U+0100)."""
BYTES |= {chr(256 + i): byte for i, byte in enumerate(x for x in range(256) if x not in PRINTABLE)}


class Tokenizer:
    """A `tokenizer.json` and its family's prompt. Text never becomes an added token, whatever it spells."""

    def __init__(self, inner: tokenizers.Tokenizer, config: InfiniteVLConfig) -> None:
        if not isinstance(inner.decoder, tokenizers.decoders.ByteLevel):
            raise ConfigError("tokenizer.json has no ByteLevel decoder: only byte-level BPE (Qwen2.5's) is read")
        inner.encode_special_tokens = True
        self.inner = inner
        named = {
            "<|vision_end|>": config.vision_end_token_id,
            "<|vision_start|>": config.vision_start_token_id,
            "<|im_start|>": config.im_start_token_id,
            "<|im_end|>": config.eos_token_id,
            "<think>": config.think_start_token_id,
            "</think>": config.think_end_token_id,
        }
        for name, expected in named.items():
            if expected is not None:
                self.special(name, expected)
        largest, rows = max(inner.get_vocab().values()), config.decoder.vocab_size
        if largest >= rows:
            raise ConfigError(
                f"tokenizer.json has ids up to {largest}, the weights' vocabulary ends before {rows}: they belong to different models,"
                " take both from one repository"
            )
        self.turn_end = config.eos_token_id
        self.think = config.think_start_token_id, config.think_end_token_id
        self.stops = frozenset({config.eos_token_id, config.pad_token_id})
        added = inner.get_added_tokens_decoder()
        self.specials = frozenset(token for token, content in added.items() if content.special)
        guard(inner)
        self.prompt = FAMILIES[config.family].prompt(self, config)

    @classmethod
    def load(cls, path: Path, config: InfiniteVLConfig) -> Tokenizer:
        """Reads a `tokenizer.json`. Raises ConfigError where it is missing, unreadable or at odds with `config`."""
        if not path.is_file():
            raise ConfigError(f"{path} is missing: take it from the repository that the weights are from")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{path} can't be read as a tokenizer ({error}): download it again") from None
        return cls(inner, config)

    def special(self, name: str, expected: int) -> None:
        """Raises ConfigError where a special token's id is not the one that the model's config names."""
        found: int | None = self.inner.token_to_id(name)
        if found != expected:
            raise ConfigError(
                f"tokenizer.json gives {name} the id {found}, config.json says {expected}: they belong to different models,"
                " take both from one repository"
            )

    def fitted(self, config: InfiniteVLConfig) -> InfiniteVLConfig:
        """`config` with room for the longest text that this tokenizer puts around a step's grid."""
        if config.clock_cap is None:
            return config
        longest = max(len(self.prompt.before(seconds)) for seconds in (0.1, config.clock_cap - 0.1))
        return replace(config, step_text=longest + len(self.prompt.after))

    def encode(self, text: str) -> list[int]:
        """Plain text to ids. Lone surrogates, which JSON may carry and UTF-8 may not, become question marks."""
        whole = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = self.inner.encode(whole, add_special_tokens=False).ids
        return ids

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling; None where there is no such token."""
        found: int | None = self.inner.token_to_id(token)
        return found

    def encode_question(
        self,
        text: str,
        instructions: str = "",
        history: Sequence[tuple[str, str]] = (),
        thinking: bool = False,
        tools: Sequence[Tool] = (),
        rounds: Sequence[Round] = (),
    ) -> list[int]:
        """The whole prompt of a question, in the family's form: see `model.families.family.Prompt.question`."""
        return self.prompt.question(text, instructions, history, thinking, tools, rounds)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens left out."""
        text: str = self.inner.decode([token for token in ids if token not in self.specials], skip_special_tokens=False)
        return text

    def spelling(self, token: int) -> bytes:
        """The bytes that a token stands for: b"" for a special one, and for an id that only pads the vocabulary."""
        content: str | None = self.inner.id_to_token(token)
        if content is None or token in self.specials:
            return b""
        try:
            return bytes([BYTES[character] for character in content])
        except KeyError:
            return content.encode()

    def detokenizer(self) -> Detokenizer:
        """A decoder of one answer, token by token."""
        return Detokenizer(self)


def guard(inner: tokenizers.Tokenizer) -> None:
    """Makes every added token special, so that none of them is ever read out of text."""
    loose = [token for token in inner.get_added_tokens_decoder().values() if not token.special]
    inner.add_special_tokens([tokenizers.AddedToken(token.content, special=True, normalized=False) for token in loose])


class Detokenizer:
    """Decodes token by token and holds back what is not a whole character yet; all it gave, joined, is `Tokenizer.decode`'s text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, often its own, "" in the middle of a character."""
        return self.decoder.decode(self.tokenizer.spelling(token))

    def flush(self) -> str:
        """What is left at the end of an answer: U+FFFD for a character that was never finished, else ""."""
        return self.decoder.decode(b"", final=True)
