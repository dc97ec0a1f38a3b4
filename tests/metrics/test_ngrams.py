"""n-gram ids give the same counts as n-grams of tuples."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics.ngrams import count_ngrams, count_tokens, flatten_references, look_up

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=7), max_size=6)


@given(TEXTS)
def test_counts_and_ids_equal_those_of_tuples(texts: list[list[str]]) -> None:
    for order, ngrams in enumerate(count_ngrams(texts), 1):
        counters = [Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1)) for text in texts]
        assert [sorted(counter.values()) for counter in counters] == [
            sorted(ngrams.counts[ngrams.rows == row].tolist()) for row in range(len(texts))
        ]
        distinct = {gram for counter in counters for gram in counter}
        rows = {id_: frozenset(ngrams.rows[ngrams.ids == id_].tolist()) for id_ in set(ngrams.ids.tolist())}
        assert len(rows) == len(distinct)
        assert Counter(rows.values()) == Counter(
            frozenset(row for row, counter in enumerate(counters) if gram in counter) for gram in distinct
        )
        keys = ngrams.pack_keys(ngrams.rows)
        assert (np.diff(keys) > 0).all()


def test_flattened_references_have_owners() -> None:
    texts, owners = flatten_references([[["a"], ["b", "c"]], [], [["d"]]])
    assert texts == [["a"], ["b", "c"], ["d"]]
    assert owners.tolist() == [0, 0, 2]
    assert count_tokens(texts).tolist() == [1, 2, 1]
    assert flatten_references([])[1].tolist() == []


def test_missing_keys_have_the_value_0() -> None:
    table, values = np.array([2, 5]), np.array([0.5, 1.5])
    assert look_up(table, values, np.array([5, 3, 9, 2, 0])).tolist() == [1.5, 0, 0, 0.5, 0]
    assert look_up(table[:0], values[:0], np.array([5])).tolist() == [0]
