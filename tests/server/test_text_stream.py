"""Pieces of an answer's text are whole characters, and together the text that `predict` shows."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from lorgnette.processing.processor import Processor
from lorgnette.processing.tokenizer import END_OF_THOUGHT_TOKEN, THINK_TOKEN, TextTokenizer
from lorgnette.server.text_stream import TextStream

TEXTS = ["A small red car.", "🎈 два шара 气球 and 👩‍👩‍👧", "line\n\n<|im_end|> line", "", "新新新", "e\u0301 ﬁ"]


def stream(
    processor: Any, ids: list[int], stops: tuple[str, ...] = (), sizes: random.Random | None = None
) -> list[str]:
    """The pieces, the rest at the end included. sizes: how many tokens come at once; one by one without."""
    text, pieces = TextStream(processor, stops), []
    while ids:
        size = sizes.randint(1, 4) if sizes else 1
        pieces.append(text.add(ids[:size]))
        ids = ids[size:]
    return [*pieces, text.end()]


@pytest.fixture
def tokenizer(built_in_processor: Processor) -> TextTokenizer:
    return built_in_processor.tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_whole(built_in_processor: Processor, tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = stream(built_in_processor, ids)
    assert "".join(pieces) == tokenizer.decode(ids) == text.replace("e\u0301", "é")
    assert "\ufffd" not in "".join(pieces)
    if "🎈" in text:  # control: token by token they are torn
        assert "\ufffd" in "".join(tokenizer.decode([id_]) for id_ in ids)


def test_any_tokens_are_the_text_of_predict(built_in_processor: Processor, tokenizer: TextTokenizer) -> None:
    """Also halves of characters, control tokens and names of boxes."""
    draw = random.Random(0)
    texts = [id_ for text in TEXTS for id_ in tokenizer.encode(text)]
    for _ in range(300):
        ids = draw.choices([*texts, *tokenizer.control_tokens.values()], k=draw.randint(0, 12))
        assert "".join(stream(built_in_processor, ids, sizes=draw)) == tokenizer.decode(ids)


def test_a_stop_text_ends_the_answer_before_it(built_in_processor: Processor, tokenizer: TextTokenizer) -> None:
    draw = random.Random(1)
    whole = "A small red car to the left of a big red tree. 🎈 A small"
    ids = tokenizer.encode(whole)
    for stop in (
        " red",
        "red tree",
        ".",
        "small",
        "🎈",
        "A",
        "l",
        " a b",
        "not there",
        "tree. 🎈 A small r",
        whole + "!",
    ):
        pieces = stream(built_in_processor, ids, (stop,), draw)
        assert "".join(pieces) == whole.partition(stop)[0]
        assert stop not in "".join(pieces)
    several = TextStream(built_in_processor, ("tree", "red car", "left"))
    assert several.add(ids) == "A small "
    assert several.has_stopped
    assert several.num_tokens == next(i for i in range(99) if "red car" in tokenizer.decode(ids[:i]))
    assert several.add(ids) == several.end() == ""


def test_only_what_may_begin_a_stop_text_is_held_back(built_in_processor: Processor, tokenizer: TextTokenizer) -> None:
    text = TextStream(built_in_processor, ("red tree",))
    assert text.add(tokenizer.encode("A small red")) == "A small "
    assert text.add(tokenizer.encode(" car.")) == "red car."
    assert text.add(tokenizer.encode(" r")) == " "
    assert text.end() == "r"


class ThinkingTokenizer(TextTokenizer):
    """The built-in model's, with the tokens of a model that thinks."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        names = {THINK_TOKEN: 900001, END_OF_THOUGHT_TOKEN: 900002}
        super().__init__(tokenizer._text, {**tokenizer.control_tokens, **names})


def test_a_thought_is_left_out(tokenizer: TextTokenizer) -> None:
    thinking = ThinkingTokenizer(tokenizer)
    begin, end = thinking.control_tokens[THINK_TOKEN], thinking.control_tokens[END_OF_THOUGHT_TOKEN]
    thought, answer = thinking.encode("a red one?"), thinking.encode("\n\nA red car.\n")
    plain, open_ = (SimpleNamespace(tokenizer=thinking, opens_thought=opens) for opens in (False, True))
    for processor, ids in (
        (plain, [begin, *thought, end, *answer]), (open_, [*thought, end, *answer]), (open_, [*thought]),
        (plain, answer), (open_, [end, *answer]), (plain, [begin, *thought]), (open_, []),
    ):  # fmt: skip
        pieces = stream(processor, ids)
        assert "".join(pieces) == thinking.decode(ids)
        if end in ids:
            assert not any(pieces[: ids.index(end) + 1])
