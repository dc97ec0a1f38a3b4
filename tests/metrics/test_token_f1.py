"""Token F1 as SQuAD's evaluate-v2.0 gives it."""

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
def test_what_counts_of_an_answer(text: str, words: list[str]) -> None:
    assert tokenize_answer(text) == words


@pytest.mark.parametrize(
    ("own", "references", "f1"),
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
def test_by_hand(own: str, references: list[str], f1: float) -> None:
    assert token_f1([own], [references]).value == pytest.approx(f1)


@given(st.text(), st.text())
def test_either_way_and_within_bounds(one: str, other: str) -> None:
    value = token_f1([one], [[other]]).value
    assert value == token_f1([other], [[one]]).value
    assert value is not None
    assert 0 <= value <= 1
    assert token_f1([one], [[other, one]]).value == 1
