"""Edit distance compared with its dynamic-programming table, and the metrics built on it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.edit_distance import anls, edit_distance, exact_match, levenshtein, normalized_levenshtein

TEXTS = st.text("abc", max_size=9)


def levenshtein_by_table(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(above[j - 1] + (a != b), above[j] + 1, row[-1] + 1))
    return row[-1]


@given(TEXTS, TEXTS)
def test_distance_equals_the_table_and_is_symmetric(a: str, b: str) -> None:
    assert levenshtein(a, b) == levenshtein_by_table(a, b) == levenshtein(b, a)
    assert 0 <= normalized_levenshtein(a, b) <= 1
    assert (normalized_levenshtein(a, b) == 0) == (a == b)


@given(TEXTS, TEXTS, TEXTS)
def test_triangle_inequality(a: str, b: str, c: str) -> None:
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


def test_long_texts() -> None:
    assert levenshtein("ab" * 500, "ba" * 500) == 2
    assert levenshtein("a" * 1000, "b" * 999) == 1000


def test_the_best_reference_counts() -> None:
    assert edit_distance(["abcd", ""], [["abce", "xxxx"], ["", "a"]]).per_example.tolist() == [0.25, 0]
    assert exact_match(["a b", "b"], [["x", "a b"], ["B"]]).per_example.tolist() == [1, 0]
    assert edit_distance([[r"\frac", "a"]], [[[r"\frac", "b"]]]).value == 0.5


def test_anls_is_0_below_one_half() -> None:
    answers = ["Hello", "hexxo", "hexx", "xxxxx", ""]
    assert anls(answers, [["hello"], ["hello"], ["hell"], ["hello"], ["a"]]).per_example.tolist() == pytest.approx(
        [1, 0.6, 0.5, 0, 0]
    )
    assert anls(["abc"], [["xyz", "abd"]]).value == pytest.approx(2 / 3)


@given(st.lists(TEXTS, min_size=1))
def test_identical_texts_are_best(texts: list[str]) -> None:
    references = [[text] for text in texts]
    assert [metric(texts, references).value for metric in (edit_distance, exact_match, anls)] == [0, 1, 1]
