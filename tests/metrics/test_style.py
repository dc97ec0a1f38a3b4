"""How texts are written: each number by hand."""

import pytest

from lorgnette.metrics import tokenizers
from lorgnette.metrics.style import compute_style


def test_every_number_by_hand() -> None:
    found = compute_style(["The cat sat. The cat sat.", "a dog", "A dog!", "", "a dog"])
    assert found.num_texts == 5
    assert found.mean_words == pytest.approx((6 + 2 + 2 + 0 + 2) / 5)
    assert found.mean_characters == pytest.approx((25 + 5 + 6 + 0 + 5) / 5)
    assert found.mean_sentences == pytest.approx((2 + 1 + 1 + 0 + 1) / 5)
    assert found.vocabulary == 5  # the cat sat a dog
    assert found.first_words == (("a", 0.6), ("the", 0.2))
    assert (found.full_stop_share, found.repeated_sentence_share, found.duplicate_share, found.empty_share) == (
        0.4,
        0.2,
        0.4,
        0.2,
    )
    assert found.words_range[0] <= found.mean_words <= found.words_range[1]


def test_chinese_is_counted_by_characters_and_stops_too() -> None:
    found = compute_style(["一只猫。一只猫。", "他说“好。”"])
    assert found.mean_words == 4.5
    assert (found.full_stop_share, found.repeated_sentence_share) == (1.0, 0.5)


def test_of_formulas_tokens_are_counted() -> None:
    found = compute_style([r"\frac { a } b", r"\frac{a}{b}"], tokenizers.tokenize_latex)
    assert (found.unit, found.mean_words) == ("tokens", 6)
    assert found.first_words == ((r"\frac", 1.0),)
    assert (compute_style(["a"]).unit, compute_style(["(a) b"]).first_words) == ("words", (("(", 1.0),))


def test_a_repeated_word_is_no_repeated_sentence() -> None:
    assert compute_style(["very very good. very good."]).repeated_sentence_share == 0


def test_no_texts_have_no_style() -> None:
    with pytest.raises(ValueError, match="no texts"):
        compute_style([])
