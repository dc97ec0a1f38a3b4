"""The common subsequence against its table, and ROUGE-L by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.rouge import lcs_length, rouge_l

TOKENS = st.lists(st.sampled_from("abc"), max_size=9)


def tabled(one: list[str], other: list[str]) -> int:
    row = [0] * (len(other) + 1)
    for a in one:
        above, row = row, [0]
        for j, b in enumerate(other):
            row.append(above[j] + 1 if a == b else max(row[-1], above[j + 1]))
    return row[-1]


@given(TOKENS, TOKENS)
def test_the_subsequence_is_the_tables(one: list[str], other: list[str]) -> None:
    assert lcs_length(one, other) == tabled(one, other) == lcs_length(other, one)


def test_by_hand() -> None:
    own, references = ["a", "b", "c", "d"], [["a", "c", "x"], ["d", "e"]]  # precision 2/4, recall 2/3
    wanted = (1 + 1.44) * (2 / 4) * (2 / 3) / (2 / 3 + 1.44 * 2 / 4)
    assert rouge_l([own], [references]).value == pytest.approx(wanted)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1))
def test_bounds_and_the_reference_itself_is_best(pairs: list[tuple[list[str], list[str]]]) -> None:
    assert all(0 <= value <= 1 for value in rouge_l([a for a, _ in pairs], [[b] for _, b in pairs]).per_example)
    assert rouge_l([a for a, _ in pairs], [[b, a] for a, b in pairs]).value == pytest.approx(1)


def test_texts_without_tokens() -> None:
    assert rouge_l([[], [], ["a"]], [[["a"]], [[]], [[]]]).per_example.tolist() == [0, 1, 0]
