"""Edit distance, exact match and ANLS: for answers that are right or nearly right (text in images, formulas).

Edit distance: Levenshtein 1966, computed bit-parallel (Myers, A fast bit-vector algorithm for approximate string
matching, JACM 1999, in Hyyrö's form of 2003). ANLS: Biten et al., Scene Text Visual Question Answering, ICCV 2019,
arXiv 1905.13648. At exactly the threshold the paper gives 0 and the benchmark's script 0.5; the script is followed.
"""

from collections.abc import Sequence
from dataclasses import replace

from lorgnette.metrics.score import Tally, tally_best

ANLS_THRESHOLD = 0.5


def levenshtein(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions of items (characters, tokens) that turn a into b."""
    if not a or not b:
        return len(a) + len(b)
    # peq[item]: bit i is set if a[i] == item. VP, VN: bit i is set if the column of the table rises, falls at row i.
    peq: dict[str, int] = {}
    for i, item in enumerate(a):
        peq[item] = peq.get(item, 0) | 1 << i
    mask, last_row = (1 << len(a)) - 1, 1 << len(a) - 1
    vp, vn, distance = mask, 0, len(a)
    for item in b:
        match = peq.get(item, 0)
        d0 = ((match & vp) + vp ^ vp) | match | vn
        hp, hn = vn | ~(d0 | vp) & mask, d0 & vp
        distance += bool(hp & last_row) - bool(hn & last_row)
        hp = hp << 1 | 1
        vp = (hn << 1 | ~(d0 | hp)) & mask
        vn = hp & d0 & mask
    return distance


def normalized_levenshtein(a: Sequence[str], b: Sequence[str]) -> float:
    """0 (equal) … 1 (nothing in common): edit distance over the longer one's length."""
    return levenshtein(a, b) / max(1, len(a), len(b))


def edit_distance(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Tally:
    """0 … 1: normalized edit distance to the nearest reference, the mean over examples. Lower is better."""
    return tally_best(hypotheses, references, normalized_levenshtein, min)


def exact_match(hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Tally:
    """Share of examples that equal one of their references."""
    return replace(tally_best(hypotheses, references, lambda a, b: float(a == b)), is_proportion=True)


def anls(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Average normalized Levenshtein similarity: ignores case; a similarity below 0.5 counts 0."""

    def compute_similarity(a: str, b: str) -> float:
        similarity = 1 - normalized_levenshtein(a.lower(), b.lower())
        return similarity if similarity >= ANLS_THRESHOLD else 0.0

    return tally_best(hypotheses, references, compute_similarity)
