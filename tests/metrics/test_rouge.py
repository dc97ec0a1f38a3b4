"""The common subsequence compared with its dynamic-programming table, and ROUGE-L of known texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.rouge import lcs_length, rouge_l

TOKENS = st.lists(st.sampled_from("abc"), max_size=9)


def lcs_by_table(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for a in first:
        above, row = row, [0]
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(row[-1], above[j + 1]))
    return row[-1]


@given(TOKENS, TOKENS)
def test_length_equals_the_table_and_is_symmetric(a: list[str], b: list[str]) -> None:
    assert lcs_length(a, b) == lcs_by_table(a, b) == lcs_length(b, a)


def test_f_measure_of_known_texts() -> None:
    hypothesis, references = ["a", "b", "c", "d"], [["a", "c", "x"], ["d", "e"]]  # precision 2/4, recall 2/3
    expected = (1 + 1.44) * (2 / 4) * (2 / 3) / (2 / 3 + 1.44 * 2 / 4)
    assert rouge_l([hypothesis], [references]).value == pytest.approx(expected)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1))
def test_values_are_bounded_and_the_reference_scores_best(pairs: list[tuple[list[str], list[str]]]) -> None:
    assert all(0 <= value <= 1 for value in rouge_l([a for a, _ in pairs], [[b] for _, b in pairs]).per_example)
    assert rouge_l([a for a, _ in pairs], [[b, a] for a, b in pairs]).value == pytest.approx(1)


def test_texts_without_tokens() -> None:
    assert rouge_l([[], [], ["a"]], [[["a"]], [[]], [[]]]).per_example.tolist() == [0, 1, 0]
