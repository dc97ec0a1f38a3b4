"""Edit distance, exact match and ANLS: for answers that are right or nearly right (text in pictures, formulas).

Edit distance: Levenshtein 1966, found bit-parallel (Myers, A fast bit-vector algorithm for approximate string
matching, JACM 1999, in Hyyrö's form of 2003). ANLS: Biten et al., Scene Text Visual Question Answering, ICCV 2019,
arXiv 1905.13648; at the threshold itself the paper and the benchmark's own script differ (0 and 0.5): the script is
followed.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from lorgnette.metrics.score import Tally, tally_mean

ANLS_THRESHOLD = 0.5
T = TypeVar("T")


def levenshtein(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and replacements of items (characters, tokens) that turn one into the other."""
    if not a or not b:
        return len(a) + len(b)
    places: dict[str, int] = {}
    for i, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << i
    whole, last = (1 << len(a)) - 1, 1 << len(a) - 1
    rises, falls, distance = whole, 0, len(a)  # where a column of the table goes up, goes down; its last cell
    for item in b:
        match = places.get(item, 0)
        diagonal = ((match & rises) + rises ^ rises) | match | falls
        up, down = falls | ~(diagonal | rises) & whole, diagonal & rises
        distance += bool(up & last) - bool(down & last)
        up = up << 1 | 1
        rises = (down << 1 | ~(diagonal | up)) & whole
        falls = up & diagonal & whole
    return distance


def normalized_levenshtein(a: Sequence[str], b: Sequence[str]) -> float:
    """0 (the same) … 1 (nothing in common): edit distance over the longer one's length."""
    return levenshtein(a, b) / max(1, len(a), len(b))


def edit_distance(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Tally:
    """Normalised edit distance to the nearest reference, the mean over examples; the lower the better."""
    return _score_examples(hypotheses, references, min, normalized_levenshtein)


def exact_match(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Tally:
    """Share of examples that are one of their references."""
    return _score_examples(hypotheses, references, max, lambda own, text: float(own == text))


def anls(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Average normalised Levenshtein similarity: letter case does not count, and what is below 0.5 counts 0."""

    def alike(own: str, text: str) -> float:
        similarity = 1 - normalized_levenshtein(own.lower(), text.lower())
        return similarity if similarity >= ANLS_THRESHOLD else 0.0

    return _score_examples(hypotheses, references, max, alike)


def _score_examples(
    hypotheses: Sequence[T],
    references: Sequence[Sequence[T]],
    select: Callable[..., float],
    compare: Callable[[T, T], float],
) -> Tally:
    values = [select(compare(own, text) for text in texts) for own, texts in zip(hypotheses, references, strict=True)]
    return tally_mean(np.array(values, np.float64))
