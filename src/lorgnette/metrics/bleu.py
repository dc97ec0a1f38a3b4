"""BLEU-1 … BLEU-4 as coco-caption computes them: one closest reference length per example, summed over the set.

Papineni, Roukos, Ward, Zhu: BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002, P02-1040.
Reference implementation: pycocoevalcap/bleu/bleu_scorer.py, option "closest", with its two small numbers (1e-15 above
and 1e-9 below the line) in place of smoothing.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from lorgnette.metrics.ngrams import Grams, Tokens, flat, grams, lengths, lookup
from lorgnette.metrics.score import Tally

ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Tally, ...]:
    """BLEU-1 … BLEU-4. An example's own value is BLEU of a set of that example alone, so short texts score near 0."""
    texts, owners = flat(references)
    own = lengths(hypotheses)
    counted = [
        column
        for order, found in enumerate(grams([*hypotheses, *texts], ORDERS), 1)
        for column in (_matches(found, owners, len(hypotheses)), np.maximum(own - order + 1, 0))
    ]
    counts = np.stack([*counted, own, _closest(own, lengths(texts), owners)], axis=1).astype(np.float64)
    scales = [_value_of(order) for order in range(1, ORDERS + 1)]
    return tuple(Tally(value_of(counts), counts, value_of) for value_of in scales)


def _matches(found: Grams, owners: Int64[np.ndarray, " R"], examples: int) -> Int64[np.ndarray, " N"]:
    """Per example: grams of the hypothesis that stand in a reference, each no more often than in any one of them."""
    ours = found.rows < examples
    keys = found.keys(np.concatenate([np.arange(examples), owners])[found.rows])
    order = np.lexsort((found.counts[~ours], keys[~ours]))
    theirs, most = keys[~ours][order], found.counts[~ours][order]
    last = np.append(theirs[1:] != theirs[:-1], True)[: len(theirs)]  # the largest count of each key
    clipped = np.minimum(found.counts[ours], lookup(theirs[last], most[last], keys[ours]))
    return np.bincount(found.rows[ours], clipped, minlength=examples).astype(np.int64)


def _closest(
    own: Int64[np.ndarray, " N"], theirs: Int64[np.ndarray, " R"], owners: Int64[np.ndarray, " R"]
) -> Int64[np.ndarray, " N"]:
    """Per example the reference length closest to the hypothesis's; of two as close, the shorter."""
    order = np.lexsort((theirs, np.abs(theirs - own[owners]), owners))
    first = np.searchsorted(owners[order], np.arange(len(own)))
    closest: Int64[np.ndarray, " N"] = theirs[order][first]
    return closest


def _value_of(order: int) -> Callable[[Float64[np.ndarray, "B K"]], Float64[np.ndarray, " B"]]:
    """Sums of (matched, tried) of every order, hypothesis length, reference length → BLEU."""

    def value_of(sums: Float64[np.ndarray, "B K"]) -> Float64[np.ndarray, " B"]:
        matched, tried = sums[:, 0 : 2 * order : 2], sums[:, 1 : 2 * order : 2]
        precision = np.prod((matched + _TINY) / (tried + _SMALL), axis=1) ** (1 / order)
        ratio = (sums[:, -2] + _TINY) / (sums[:, -1] + _SMALL)
        value: Float64[np.ndarray, " B"] = precision * np.exp(np.minimum(0, 1 - 1 / ratio))
        return value

    return value_of
