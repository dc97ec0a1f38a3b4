"""BLEU-1 … BLEU-4 as coco-caption computes them: one closest reference length per example, summed over the set.

Papineni, Roukos, Ward, Zhu: BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002, P02-1040.
Reference implementation: pycocoevalcap/bleu/bleu_scorer.py, option "closest", with its two small numbers (1e-15 above
and 1e-9 below the line) in place of smoothing.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from lorgnette.metrics.ngrams import NGrams, Tokens, count_ngrams, count_tokens, flatten_references, look_up
from lorgnette.metrics.score import Tally

MAX_ORDER = 4
_TINY, _SMALL = 1e-15, 1e-9


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Tally, ...]:
    """BLEU-1 … BLEU-4. An example's own value is BLEU of a set of that example alone, so short texts score near 0."""
    texts, owners = flatten_references(references)
    own = count_tokens(hypotheses)
    counted = [
        column
        for order, found in enumerate(count_ngrams([*hypotheses, *texts], MAX_ORDER), 1)
        for column in (_count_matches(found, owners, len(hypotheses)), np.maximum(own - order + 1, 0))
    ]
    counts = np.stack([*counted, own, _find_closest_lengths(own, count_tokens(texts), owners)], axis=1).astype(
        np.float64
    )
    scales = [_build_value_function(order) for order in range(1, MAX_ORDER + 1)]
    return tuple(Tally(value_of(counts), counts, value_of) for value_of in scales)


def _count_matches(ngrams: NGrams, owners: Int64[np.ndarray, " R"], num_examples: int) -> Int64[np.ndarray, " N"]:
    """Per example: grams of the hypothesis that stand in a reference, each no more often than in any one of them."""
    ours = ngrams.rows < num_examples
    keys = ngrams.pack_keys(np.concatenate([np.arange(num_examples), owners])[ngrams.rows])
    order = np.lexsort((ngrams.counts[~ours], keys[~ours]))
    theirs, most = keys[~ours][order], ngrams.counts[~ours][order]
    last = np.append(theirs[1:] != theirs[:-1], True)[: len(theirs)]  # the largest count of each key
    clipped = np.minimum(ngrams.counts[ours], look_up(theirs[last], most[last], keys[ours]))
    return np.bincount(ngrams.rows[ours], clipped, minlength=num_examples).astype(np.int64)


def _find_closest_lengths(
    hypothesis_lengths: Int64[np.ndarray, " N"],
    reference_lengths: Int64[np.ndarray, " R"],
    owners: Int64[np.ndarray, " R"],
) -> Int64[np.ndarray, " N"]:
    """Per example the reference length closest to the hypothesis's; of two as close, the shorter."""
    order = np.lexsort((reference_lengths, np.abs(reference_lengths - hypothesis_lengths[owners]), owners))
    first = np.searchsorted(owners[order], np.arange(len(hypothesis_lengths)))
    closest: Int64[np.ndarray, " N"] = reference_lengths[order][first]
    return closest


def _build_value_function(order: int) -> Callable[[Float64[np.ndarray, "B K"]], Float64[np.ndarray, " B"]]:
    """Sums of (matched, tried) of every order, hypothesis length, reference length → BLEU."""

    def value_of(sums: Float64[np.ndarray, "B K"]) -> Float64[np.ndarray, " B"]:
        matched, tried = sums[:, 0 : 2 * order : 2], sums[:, 1 : 2 * order : 2]
        precision = np.prod((matched + _TINY) / (tried + _SMALL), axis=1) ** (1 / order)
        ratio = (sums[:, -2] + _TINY) / (sums[:, -1] + _SMALL)
        value: Float64[np.ndarray, " B"] = precision * np.exp(np.minimum(0, 1 - 1 / ratio))
        return value

    return value_of
