"""How texts are written: each number by hand."""

import pytest

from lorgnette.metrics import tokenizers
from lorgnette.metrics.style import style


def test_every_number_by_hand() -> None:
    found = style(["The cat sat. The cat sat.", "a dog", "A dog!", "", "a dog"])
    assert found.texts == 5
    assert found.words == pytest.approx((6 + 2 + 2 + 0 + 2) / 5)
    assert found.characters == pytest.approx((25 + 5 + 6 + 0 + 5) / 5)
    assert found.sentences == pytest.approx((2 + 1 + 1 + 0 + 1) / 5)
    assert found.vocabulary == 5  # the cat sat a dog
    assert found.openings == (("a", 0.6), ("the", 0.2))
    assert (found.stopped, found.repeating, found.shared, found.empty) == (0.4, 0.2, 0.4, 0.2)
    assert found.words_range[0] <= found.words <= found.words_range[1]


def test_chinese_is_counted_by_characters_and_stops_too() -> None:
    found = style(["一只猫。一只猫。", "他说“好。”"])
    assert found.words == 4.5
    assert (found.stopped, found.repeating) == (1.0, 0.5)


def test_of_formulas_tokens_are_counted() -> None:
    found = style([r"\frac { a } b", r"\frac{a}{b}"], tokenizers.latex)
    assert (found.unit, found.words) == ("tokens", 6)
    assert found.openings == ((r"\frac", 1.0),)
    assert (style(["a"]).unit, style(["(a) b"]).openings) == ("words", (("(", 1.0),))


def test_a_repeated_word_is_no_repeated_sentence() -> None:
    assert style(["very very good. very good."]).repeating == 0


def test_no_texts_have_no_style() -> None:
    with pytest.raises(ValueError, match="no texts"):
        style([])
