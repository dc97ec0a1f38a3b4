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

from lorgnette.metrics.ngrams import NGrams, Tokens, count_ngrams, count_tokens, flatten_references, look_up
from lorgnette.metrics.score import Tally, tally_mean

MAX_ORDER, SIGMA = 4, 6.0
_ONE_IMAGE = "needs several pictures: an n-gram weighs by how few of the pictures it belongs to"
_NO_WEIGHTS = "every n-gram belongs to every picture, so none weighs anything"


def cider_d(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """0 … 10, the mean over examples. A set of one picture has no document frequencies and no value.

    The bootstrap holds the document frequencies of the whole set fixed.
    """
    examples = len(hypotheses)
    texts, owners = flatten_references(references)
    found = count_ngrams([*hypotheses, *texts], MAX_ORDER)
    own, theirs = (np.maximum(count_tokens(some) - 1, 0) for some in (hypotheses, texts))
    fits = np.exp(-((own[owners] - theirs) ** 2) / (2 * SIGMA**2))
    alike = np.zeros(len(texts))
    weighed = False
    for one in found:
        weights = _compute_tf_idf(one, owners, examples)
        weighed = weighed or bool(weights[one.rows >= examples].any())
        alike += _compute_cosines(one, weights, owners, examples)
    shares = np.bincount(owners, minlength=examples)
    values = 10 / MAX_ORDER * np.bincount(owners, alike * fits, minlength=examples) / shares
    if examples == 1:
        return tally_mean(values, _ONE_IMAGE, is_undefined=True)
    return tally_mean(values, None if weighed else _NO_WEIGHTS)


def _compute_tf_idf(ngrams: NGrams, owners: Int64[np.ndarray, " R"], num_examples: int) -> Float64[np.ndarray, " M"]:
    """tf-idf of every gram: its count times log(pictures / pictures whose references have it)."""
    theirs = ngrams.rows >= num_examples
    pairs = np.sort(owners[ngrams.rows[theirs] - num_examples] * ngrams.num_ids + ngrams.ids[theirs])
    first = np.diff(pairs, prepend=-1) > 0  # of several references with the gram
    pictures = np.bincount(pairs[first] % ngrams.num_ids, minlength=ngrams.num_ids)
    rarity = math.log(max(1, num_examples)) - np.log(np.maximum(1, pictures))
    weights: Float64[np.ndarray, " M"] = ngrams.counts * rarity[ngrams.ids]
    return weights


def _compute_cosines(
    ngrams: NGrams, weights: Float64[np.ndarray, " M"], owners: Int64[np.ndarray, " R"], num_examples: int
) -> Float64[np.ndarray, " R"]:
    """Per reference: its cosine with its example's hypothesis, whose weights are clipped to the reference's."""
    ours = ngrams.rows < num_examples
    norms = np.sqrt(np.bincount(ngrams.rows, weights**2, minlength=num_examples + len(owners)))
    keys = ngrams.pack_keys(ngrams.rows)
    to = ngrams.rows[~ours] - num_examples
    against = ngrams.pack_keys(np.append(np.zeros(num_examples, np.int64), owners)[ngrams.rows])[~ours]
    clipped = np.minimum(look_up(keys[ours], weights[ours], against), weights[~ours])
    dots = np.bincount(to, clipped * weights[~ours], minlength=len(owners))
    scale = norms[:num_examples][owners] * norms[num_examples:]
    cosines: Float64[np.ndarray, " R"] = np.divide(dots, scale, out=np.zeros(len(owners)), where=scale > 0)
    return cosines
