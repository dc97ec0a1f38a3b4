"""CIDEr-D: how alike two captions are in the n-grams that tell this set's pictures apart.

Vedantam, Zitnick, Parikh: CIDEr: Consensus-based Image Description Evaluation, CVPR 2015, arXiv 1411.5726, §6.
Reference implementation: pycocoevalcap/cider/cider_scorer.py. Its class is called Cider and computes CIDEr-D (clipped
counts, a Gaussian on the difference in length, ×10), with two habits that are kept here: the document frequencies are
those of the references of the very set that is scored, and a length is counted in bigrams.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from lorgnette.metrics.ngrams import Grams, Tokens, flat, grams, lengths, lookup
from lorgnette.metrics.score import Tally, mean

ORDERS, SIGMA = 4, 6.0
_ONE_PICTURE = "needs several pictures: an n-gram weighs by how few of the pictures it belongs to"
_NOTHING_TELLS_APART = "every n-gram belongs to every picture, so none weighs anything"


def cider_d(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """0 … 10, the mean over examples. A set of one picture has no document frequencies and no value.

    The bootstrap holds the document frequencies of the whole set fixed.
    """
    examples = len(hypotheses)
    texts, owners = flat(references)
    found = grams([*hypotheses, *texts], ORDERS)
    own, theirs = (np.maximum(lengths(some) - 1, 0) for some in (hypotheses, texts))
    fits = np.exp(-((own[owners] - theirs) ** 2) / (2 * SIGMA**2))
    alike = np.zeros(len(texts))
    weighed = False
    for one in found:
        weights = _weights(one, owners, examples)
        weighed = weighed or bool(weights[one.rows >= examples].any())
        alike += _cosines(one, weights, owners, examples)
    shares = np.bincount(owners, minlength=examples)
    values = 10 / ORDERS * np.bincount(owners, alike * fits, minlength=examples) / shares
    if examples == 1:
        return mean(values, _ONE_PICTURE, nothing=True)
    return mean(values, None if weighed else _NOTHING_TELLS_APART)


def _weights(found: Grams, owners: Int64[np.ndarray, " R"], examples: int) -> Float64[np.ndarray, " M"]:
    """tf-idf of every gram: its count times log(pictures / pictures whose references have it)."""
    theirs = found.rows >= examples
    pairs = np.sort(owners[found.rows[theirs] - examples] * found.kinds + found.ids[theirs])
    first = np.diff(pairs, prepend=-1) > 0  # of several references with the gram
    pictures = np.bincount(pairs[first] % found.kinds, minlength=found.kinds)
    rarity = math.log(max(1, examples)) - np.log(np.maximum(1, pictures))
    weights: Float64[np.ndarray, " M"] = found.counts * rarity[found.ids]
    return weights


def _cosines(
    found: Grams, weights: Float64[np.ndarray, " M"], owners: Int64[np.ndarray, " R"], examples: int
) -> Float64[np.ndarray, " R"]:
    """Per reference: its cosine with its example's hypothesis, whose weights are clipped to the reference's."""
    ours = found.rows < examples
    norms = np.sqrt(np.bincount(found.rows, weights**2, minlength=examples + len(owners)))
    keys = found.keys(found.rows)
    to = found.rows[~ours] - examples
    against = found.keys(np.append(np.zeros(examples, np.int64), owners)[found.rows])[~ours]
    clipped = np.minimum(lookup(keys[ours], weights[ours], against), weights[~ours])
    dots = np.bincount(to, clipped * weights[~ours], minlength=len(owners))
    scale = norms[:examples][owners] * norms[examples:]
    cosines: Float64[np.ndarray, " R"] = np.divide(dots, scale, out=np.zeros(len(owners)), where=scale > 0)
    return cosines
