"""Grams as numbers count what grams as tuples count."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.ngrams import count_ngrams, count_tokens, flatten_references, look_up

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=7), max_size=6)


@given(TEXTS)
def test_every_gram_is_counted_and_told_apart(texts: list[list[str]]) -> None:
    for order, found in enumerate(count_ngrams(texts), 1):
        plain = [Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1)) for text in texts]
        assert [sorted(one.values()) for one in plain] == [
            sorted(found.counts[found.rows == row].tolist()) for row in range(len(texts))
        ]
        kinds = {gram for one in plain for gram in one}
        rows = {number: frozenset(found.rows[found.ids == number].tolist()) for number in set(found.ids.tolist())}
        assert len(rows) == len(kinds)
        assert Counter(rows.values()) == Counter(
            frozenset(row for row, one in enumerate(plain) if gram in one) for gram in kinds
        )
        keys = found.pack_keys(found.rows)
        assert (np.diff(keys) > 0).all()


def test_references_know_whose_they_are() -> None:
    texts, owners = flatten_references([[["a"], ["b", "c"]], [], [["d"]]])
    assert texts == [["a"], ["b", "c"], ["d"]]
    assert owners.tolist() == [0, 0, 2]
    assert count_tokens(texts).tolist() == [1, 2, 1]
    assert flatten_references([])[1].tolist() == []


def test_what_is_not_in_a_table_is_nought() -> None:
    table, values = np.array([2, 5]), np.array([0.5, 1.5])
    assert look_up(table, values, np.array([5, 3, 9, 2, 0])).tolist() == [1.5, 0, 0, 0.5, 0]
    assert look_up(table[:0], values[:0], np.array([5])).tolist() == [0]
