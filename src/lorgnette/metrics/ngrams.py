"""n-gram counts of many texts at once, in numpy: the input of BLEU and CIDEr-D.

Each text is a row; a row has `len(tokens) - n + 1` n-grams. Equal n-grams of one order have equal ids.
"""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num

Tokens = Sequence[str]


@dataclass(frozen=True, slots=True)
class NGrams:
    """The distinct n-grams of each row, sorted by (row, id).

    rows, ids, counts: [M] the row, the n-gram, its count in the row. num_ids: distinct n-grams in all rows.
    """

    rows: Int64[np.ndarray, " M"]
    ids: Int64[np.ndarray, " M"]
    counts: Int64[np.ndarray, " M"]
    num_ids: int

    def pack_keys(self, rows: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        """One integer for each (row, id)."""
        keys: Int64[np.ndarray, " M"] = rows * self.num_ids + self.ids
        return keys


def count_ngrams(texts: Sequence[Tokens], max_order: int = 4) -> list[NGrams]:
    """The n-grams of the orders 1 … max_order."""
    vocabulary: dict[str, int] = {}
    words = np.array([vocabulary.setdefault(word, len(vocabulary)) for text in texts for word in text], np.int64)
    lengths = count_tokens(texts)
    rows = np.repeat(np.arange(len(texts)), lengths)
    num_left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # tokens from here to the text's end
    result, ids, num_ids = [], words, max(1, len(vocabulary))
    for order in range(1, max_order + 1):
        is_start = num_left >= order
        if order > 1:
            # An n-gram is the (n-1)-gram at its start and its last word, renumbered.
            last_words = np.append(words[order - 1 :], np.zeros(min(order - 1, len(words)), np.int64))
            pairs = ids * max(1, len(vocabulary)) + last_words
            distinct, inverse = np.unique(pairs[is_start], return_inverse=True)
            ids = np.zeros_like(words)
            ids[is_start], num_ids = inverse, max(1, len(distinct))
        keys, counts = np.unique(rows[is_start] * num_ids + ids[is_start], return_counts=True)
        result.append(NGrams(keys // num_ids, keys % num_ids, counts.astype(np.int64), num_ids))
    return result


def flatten_references(references: Sequence[Sequence[Tokens]]) -> tuple[list[Tokens], Int64[np.ndarray, " R"]]:
    """All references in one list, and the example of each."""
    owners = np.repeat(np.arange(len(references)), count_tokens(references))
    return [text for texts in references for text in texts], owners


def look_up(
    table: Int64[np.ndarray, " M"], values: Num[np.ndarray, " M"], keys: Int64[np.ndarray, " Q"]
) -> Num[np.ndarray, " Q"]:
    """values[i] where table[i] == key, else 0. The table is sorted and has no duplicates."""
    if not len(table):
        return np.zeros(len(keys), values.dtype)
    indices = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[indices] == keys, values[indices], 0)


def count_tokens(texts: Iterable[Sized]) -> Int64[np.ndarray, " R"]:
    """The number of tokens of each text."""
    return np.array([len(text) for text in texts], np.int64)
