"""ROUGE-L: the longest common subsequence with the references, recall weighing more than precision.

Lin: ROUGE: a Package for Automatic Evaluation of Summaries, 2004, W04-1013. Reference implementation:
pycocoevalcap/rouge/rouge.py: beta 1.2, and over several references the best precision and the best recall, each for
itself. The subsequence is found bit-parallel (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).
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
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    whole = (1 << len(a)) - 1
    open_places = whole
    for token in b:
        matched = open_places & places.get(token, 0)
        if matched:
            open_places = (open_places + matched | open_places - matched) & whole
    return len(a) - open_places.bit_count()


def _compute_f_measure(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    hypothesis = hypothesis or (
        "",
    )  # as the official one: a text without tokens is one empty token, and equal to another such
    common = [(lcs_length(hypothesis, text or ("",)), len(text or ("",))) for text in references]
    precision = max(length for length, _ in common) / len(hypothesis)
    recall = max(length / whole for length, whole in common)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0
