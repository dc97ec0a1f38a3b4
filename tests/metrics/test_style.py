"""Style statistics of known texts."""

import pytest

from lorgnette.metrics import tokenizers
from lorgnette.metrics.style import compute_style


def test_every_statistic() -> None:
    style = compute_style(["The cat sat. The cat sat.", "a dog", "A dog!", "", "a dog"])
    assert style.num_texts == 5
    assert style.mean_words == pytest.approx((6 + 2 + 2 + 0 + 2) / 5)
    assert style.mean_characters == pytest.approx((25 + 5 + 6 + 0 + 5) / 5)
    assert style.mean_sentences == pytest.approx((2 + 1 + 1 + 0 + 1) / 5)
    assert style.vocabulary == 5  # the cat sat a dog
    assert style.first_words == (("a", 0.6), ("the", 0.2))
    assert (style.full_stop_share, style.repeated_sentence_share, style.duplicate_share, style.empty_share) == (
        0.4,
        0.2,
        0.4,
        0.2,
    )
    assert style.words_range[0] <= style.mean_words <= style.words_range[1]


def test_chinese_characters_and_full_stops_count() -> None:
    style = compute_style(["一只猫。一只猫。", "他说“好。”"])
    assert style.mean_words == 4.5
    assert (style.full_stop_share, style.repeated_sentence_share) == (1.0, 0.5)


def test_formulas_are_counted_in_tokens() -> None:
    style = compute_style([r"\frac { a } b", r"\frac{a}{b}"], tokenizers.tokenize_latex)
    assert (style.unit, style.mean_words) == ("tokens", 6)
    assert style.first_words == ((r"\frac", 1.0),)
    assert (compute_style(["a"]).unit, compute_style(["(a) b"]).first_words) == ("words", (("(", 1.0),))


def test_a_repeated_word_is_not_a_repeated_sentence() -> None:
    assert compute_style(["very very good. very good."]).repeated_sentence_share == 0


def test_without_texts_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="no texts"):
        compute_style([])
