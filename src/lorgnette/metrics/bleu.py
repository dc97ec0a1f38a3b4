"""BLEU-1 … BLEU-4 as coco-caption computes them: one closest reference length per example, summed over the set.

Papineni, Roukos, Ward, Zhu: BLEU: a Method for Automatic Evaluation of Machine Translation, ACL 2002, P02-1040.
Reference implementation: pycocoevalcap/bleu/bleu_scorer.py, option "closest", with its epsilons instead of smoothing
(1e-15 in numerators, 1e-9 in denominators).
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64

from lorgnette.metrics.ngrams import NGrams, Tokens, count_ngrams, count_tokens, flatten_references, look_up
from lorgnette.metrics.score import Tally

MAX_ORDER = 4
_TINY, _SMALL = 1e-15, 1e-9


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Tally, ...]:
    """BLEU-1 … BLEU-4. per_example is BLEU of a set of that example alone, so short texts score near 0."""
    texts, owners = flatten_references(references)
    lengths = count_tokens(hypotheses)
    columns = [
        column
        for order, ngrams in enumerate(count_ngrams([*hypotheses, *texts], MAX_ORDER), 1)
        for column in (_count_matches(ngrams, owners, len(hypotheses)), np.maximum(lengths - order + 1, 0))
    ]
    closest = _find_closest_lengths(lengths, count_tokens(texts), owners)
    counts = np.stack([*columns, lengths, closest], axis=1).astype(np.float64)
    functions = [partial(_compute_bleu, order) for order in range(1, MAX_ORDER + 1)]
    return tuple(Tally(compute_value(counts), counts, compute_value) for compute_value in functions)


def _count_matches(ngrams: NGrams, owners: Int64[np.ndarray, " R"], num_examples: int) -> Int64[np.ndarray, " N"]:
    """Per example: n-grams of the hypothesis found in a reference, each clipped to its count in any one reference."""
    is_hypothesis = ngrams.rows < num_examples
    keys = ngrams.pack_keys(np.concatenate([np.arange(num_examples), owners])[ngrams.rows])
    # Of every (example, n-gram) among the references, keep the largest count: the last of its run.
    order = np.lexsort((ngrams.counts[~is_hypothesis], keys[~is_hypothesis]))
    reference_keys, reference_counts = keys[~is_hypothesis][order], ngrams.counts[~is_hypothesis][order]
    is_last = np.append(reference_keys[1:] != reference_keys[:-1], True)[: len(reference_keys)]
    max_counts = look_up(reference_keys[is_last], reference_counts[is_last], keys[is_hypothesis])
    clipped = np.minimum(ngrams.counts[is_hypothesis], max_counts)
    return np.bincount(ngrams.rows[is_hypothesis], clipped, minlength=num_examples).astype(np.int64)


def _find_closest_lengths(
    hypothesis_lengths: Int64[np.ndarray, " N"],
    reference_lengths: Int64[np.ndarray, " R"],
    owners: Int64[np.ndarray, " R"],
) -> Int64[np.ndarray, " N"]:
    """Per example the reference length closest to the hypothesis's; the shorter one of a tie."""
    order = np.lexsort((reference_lengths, np.abs(reference_lengths - hypothesis_lengths[owners]), owners))
    first = np.searchsorted(owners[order], np.arange(len(hypothesis_lengths)))
    closest: Int64[np.ndarray, " N"] = reference_lengths[order][first]
    return closest


def _compute_bleu(order: int, sums: Float64[np.ndarray, "B K"]) -> Float64[np.ndarray, " B"]:
    """Sums of (matches, n-grams) of every order, hypothesis length, reference length → BLEU."""
    matches, totals = sums[:, 0 : 2 * order : 2], sums[:, 1 : 2 * order : 2]
    precision = np.prod((matches + _TINY) / (totals + _SMALL), axis=1) ** (1 / order)
    length_ratio = (sums[:, -2] + _TINY) / (sums[:, -1] + _SMALL)
    value: Float64[np.ndarray, " B"] = precision * np.exp(np.minimum(0, 1 - 1 / length_ratio))
    return value
