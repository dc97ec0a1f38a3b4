"""ROUGE-L: longest common subsequence with the references, with recall weighted above precision.

Lin: ROUGE: a Package for Automatic Evaluation of Summaries, 2004, W04-1013. Reference implementation:
pycocoevalcap/rouge/rouge.py: beta 1.2, and over several references the best precision and the best recall, separately.
The subsequence is computed bit-parallel (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).
"""

from collections.abc import Sequence

import numpy as np

from lorgnette.metrics.ngrams import Tokens
from lorgnette.metrics.score import Tally, tally_mean

BETA = 1.2


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """0 … 1, the mean over examples."""
    values = [_compute_f_measure(own, texts) for own, texts in zip(hypotheses, references, strict=True)]
    return tally_mean(np.array(values, np.float64))


def lcs_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    positions: dict[str, int] = {}  # of each token in a, as bits
    for i, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << i
    mask = (1 << len(a)) - 1
    unmatched = mask
    for token in b:
        matches = unmatched & positions.get(token, 0)
        if matches:
            unmatched = (unmatched + matches | unmatched - matches) & mask
    return len(a) - unmatched.bit_count()


def _compute_f_measure(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    # As in pycocoevalcap, a text without tokens is one empty token, equal to another such text.
    hypothesis = hypothesis or ("",)
    lengths = [(lcs_length(hypothesis, text), len(text)) for text in (text or ("",) for text in references)]
    precision = max(common for common, _ in lengths) / len(hypothesis)
    recall = max(common / length for common, length in lengths)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0
