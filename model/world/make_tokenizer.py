"""Builds the nano's tokenizer.json: byte-level BPE over what the world is asked; digits and capitals stay single tokens.

`python -m model.world.make_tokenizer OUTPUT`
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from model.config import nano
from model.world.generate import draw_scene
from model.world.objects import COLOURS, NAMES, SHAPES, Thing
from model.world.phrasings import PHRASES, PREFIXES
from model.world.questions import WEIGHTS, Examiner
from model.world.render import Assets

SPECIAL = (
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|im_start|>",
    "<|im_end|>",
)


def corpus(scenes: int = 1500) -> Iterator[str]:
    """Questions and answers of random scenes, every phrasing's words, every thing's name, and the chat format's own words."""
    gallery = Assets.load().gallery
    rng = np.random.default_rng(7)
    for _ in range(scenes):
        scene = draw_scene(rng, 24, "train", gallery)
        for question in Examiner(rng, scene, 23, "train").ask(12, WEIGHTS):
            yield question.text
            yield question.answer
    things = [Thing("shape", shape, colour).phrase for shape in SHAPES for colour in COLOURS]
    things += [Thing("object", name).phrase for name in NAMES]
    for _ in range(20):
        yield from ("system\n", "user\n", "assistant\n", *PREFIXES)
        for phrases in PHRASES.values():
            yield from phrases
            yield from (phrase.lower() for phrase in phrases)
        for thing in things:
            yield thing
            yield f"the {thing.split(' ', 1)[1]} and {thing}"


def build() -> tokenizers.Tokenizer:
    """The trained tokenizer."""
    config = nano()
    ids = (config.pad_token_id, config.vision_start_token_id, config.vision_end_token_id, config.image_token_id,
           config.video_token_id, config.im_start_token_id, config.eos_token_id)  # fmt: skip
    assert ids == tuple(range(len(SPECIAL)))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[0-9A-Z]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.decoder.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=4,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


if __name__ == "__main__":
    built = build()
    built.save(sys.argv[1])
    print(Path(sys.argv[1]).stat().st_size, "bytes,", built.get_vocab_size(), "tokens")
