"""Token F1 of short answers, as SQuAD computes it.

Rajpurkar et al.: SQuAD, EMNLP 2016, arXiv 1606.05250. Normalization (lower case, no punctuation, no articles) and the
rule for empty answers follow the official evaluate-v2.0.py. Each Han character is a token, as in CMRC 2018's script.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from lorgnette.metrics.score import Tally, tally_best

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "，。、！？；：（）《》「」“”‘’…", None))
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")


def tokenize_answer(text: str) -> list[str]:
    """The normalized tokens of an answer."""
    normalized = _HAN.sub(r" \g<0> ", text.lower()).translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", normalized).split()


def token_f1(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """0 … 1: F1 of the tokens shared with the best reference, the mean over examples."""
    tokens = [[tokenize_answer(text) for text in texts] for texts in references]
    return tally_best(list(map(tokenize_answer, hypotheses)), tokens, _compute_f1)


def _compute_f1(hypothesis: list[str], reference: list[str]) -> float:
    if not hypothesis or not reference:
        return float(hypothesis == reference)
    return 2 * (Counter(hypothesis) & Counter(reference)).total() / (len(hypothesis) + len(reference))
