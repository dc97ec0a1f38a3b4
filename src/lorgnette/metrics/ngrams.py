"""n-grams of many texts at once, as numbers: what BLEU and CIDEr-D count.

Texts are rows; row r of order n has `len(tokens) - n + 1` grams. Two grams of one order are the same number exactly
where their tokens are the same.
"""

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Num

Tokens = Sequence[str]


@dataclass(frozen=True, slots=True)
class NGrams:
    """The distinct grams of each row, in the order of (row, gram).

    rows, ids, counts: [M] which row, which gram, how often; kinds: how many different ids there are.
    """

    rows: Int64[np.ndarray, " M"]
    ids: Int64[np.ndarray, " M"]
    counts: Int64[np.ndarray, " M"]
    num_ids: int

    def pack_keys(self, rows: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " M"]:
        """One number for a (row, gram)."""
        keys: Int64[np.ndarray, " M"] = rows * self.num_ids + self.ids
        return keys


def count_ngrams(texts: Sequence[Tokens], max_order: int = 4) -> list[NGrams]:
    """Grams of the orders 1 … orders."""
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for text in texts for word in text], np.int64)
    sizes = count_tokens(texts)
    rows = np.repeat(np.arange(len(texts)), sizes)
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(words))  # tokens from here to the text's end
    made, ids, kinds = [], words, max(1, len(numbers))
    for order in range(1, max_order + 1):
        if order > 1:
            starts = left >= order
            following = np.append(words[order - 1 :], np.zeros(min(order - 1, len(words)), np.int64))
            joined = ids * max(1, len(numbers)) + following
            distinct, inverse = np.unique(joined[starts], return_inverse=True)
            ids = np.zeros_like(words)
            ids[starts], kinds = inverse, max(1, len(distinct))
        here = left >= order
        keys, counts = np.unique(rows[here] * kinds + ids[here], return_counts=True)
        made.append(NGrams(keys // kinds, keys % kinds, counts.astype(np.int64), kinds))
    return made


def flatten_references(references: Sequence[Sequence[Tokens]]) -> tuple[list[Tokens], Int64[np.ndarray, " R"]]:
    """All references in one list, and the example each belongs to."""
    owners = np.repeat(np.arange(len(references)), count_tokens(references))
    return [text for texts in references for text in texts], owners


def look_up(
    table: Int64[np.ndarray, " M"], values: Num[np.ndarray, " M"], keys: Int64[np.ndarray, " Q"]
) -> Num[np.ndarray, " Q"]:
    """values[i] where table[i] == key, else 0; table is sorted and its numbers are distinct."""
    if not len(table):
        return np.zeros(len(keys), values.dtype)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, values[at], 0)


def count_tokens(texts: Iterable[Sized]) -> Int64[np.ndarray, " R"]:
    """How many tokens each text has."""
    return np.array([len(text) for text in texts], np.int64)
