"""Token F1 as SQuAD's evaluate-v2.0 computes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.token_f1 import token_f1, tokenize_answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, a  DOG!", ["cat", "dog"]),
        ("it's and-or", ["its", "andor"]),
        ("一只猫，a cat。", ["一", "只", "猫", "cat"]),
        ("", []),
        ("an", []),
    ],
)
def test_normalized_tokens(text: str, words: list[str]) -> None:
    assert tokenize_answer(text) == words


@pytest.mark.parametrize(
    ("hypothesis", "references", "f1"),
    [
        ("the red cat", ["a cat"], 2 / 3),
        ("cat cat", ["cat"], 2 / 3),
        ("cat", ["dog", "The cat."], 1),
        ("", [""], 1),
        ("the", ["a"], 1),
        ("cat", [""], 0),
        ("dog", ["cat"], 0),
    ],
)
def test_f1_of_known_answers(hypothesis: str, references: list[str], f1: float) -> None:
    assert token_f1([hypothesis], [references]).value == pytest.approx(f1)


@given(st.text(), st.text())
def test_f1_is_symmetric_and_bounded(a: str, b: str) -> None:
    value = token_f1([a], [[b]]).value
    assert value == token_f1([b], [[a]]).value
    assert value is not None
    assert 0 <= value <= 1
    assert token_f1([a], [[b, a]]).value == 1
