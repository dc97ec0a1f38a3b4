"""Edit distance against its table, and the metrics built on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.edit_distance import anls, edit_distance, exact_match, levenshtein, normalized_levenshtein

TEXTS = st.text("abc", max_size=9)


def tabled(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        above, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(above[j - 1] + (a != b), above[j] + 1, row[-1] + 1))
    return row[-1]


@given(TEXTS, TEXTS)
def test_the_distance_is_the_tables_either_way(one: str, other: str) -> None:
    assert levenshtein(one, other) == tabled(one, other) == levenshtein(other, one)
    assert 0 <= normalized_levenshtein(one, other) <= 1
    assert (normalized_levenshtein(one, other) == 0) == (one == other)


@given(TEXTS, TEXTS, TEXTS)
def test_a_detour_is_no_shorter(one: str, other: str, third: str) -> None:
    assert levenshtein(one, third) <= levenshtein(one, other) + levenshtein(other, third)


def test_long_texts() -> None:
    assert levenshtein("ab" * 500, "ba" * 500) == 2
    assert levenshtein("a" * 1000, "b" * 999) == 1000


def test_the_nearest_reference_counts() -> None:
    assert edit_distance(["abcd", ""], [["abce", "xxxx"], ["", "a"]]).per_example.tolist() == [0.25, 0]
    assert exact_match(["a b", "b"], [["x", "a b"], ["B"]]).per_example.tolist() == [1, 0]
    assert edit_distance([[r"\frac", "a"]], [[[r"\frac", "b"]]]).value == 0.5


def test_anls_forgives_half_and_no_more() -> None:
    answers = ["Hello", "hexxo", "hexx", "xxxxx", ""]
    assert anls(answers, [["hello"], ["hello"], ["hell"], ["hello"], ["a"]]).per_example.tolist() == pytest.approx(
        [1, 0.6, 0.5, 0, 0]
    )
    assert anls(["abc"], [["xyz", "abd"]]).value == pytest.approx(2 / 3)


@given(st.lists(TEXTS, min_size=1))
def test_identical_texts_are_best(texts: list[str]) -> None:
    references = [[text] for text in texts]
    assert [metric(texts, references).value for metric in (edit_distance, exact_match, anls)] == [0, 1, 1]
