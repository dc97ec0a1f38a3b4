"""CIDEr-D: similarity of captions in the n-grams that distinguish this set's images.

Vedantam, Zitnick, Parikh: CIDEr: Consensus-based Image Description Evaluation, CVPR 2015, arXiv 1411.5726, §6.
Reference implementation: pycocoevalcap/cider/cider_scorer.py. Its class Cider computes CIDEr-D (clipped counts, a
Gaussian penalty on the difference in length, ×10). Two of its habits are kept: document frequencies come from the
references of the scored set, and length is counted in bigrams.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from lorgnette.metrics.ngrams import NGrams, Tokens, count_ngrams, count_tokens, flatten_references, look_up
from lorgnette.metrics.score import Tally, tally_mean

MAX_ORDER, SIGMA = 4, 6.0
_ONE_IMAGE = "needs several images: an n-gram's weight depends on how few images have it"
_NO_WEIGHTS = "every image has the same n-grams, so all weights are 0"


def cider_d(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Tally:
    """0 … 10, the mean over examples. Undefined for one image, since it has no document frequencies. The bootstrap
    keeps the document frequencies of the whole set."""
    num_examples = len(hypotheses)
    texts, owners = flatten_references(references)
    hypothesis_lengths, reference_lengths = (np.maximum(count_tokens(part) - 1, 0) for part in (hypotheses, texts))
    length_penalty = np.exp(-((hypothesis_lengths[owners] - reference_lengths) ** 2) / (2 * SIGMA**2))
    similarity = np.zeros(len(texts))
    has_weights = False
    for ngrams in count_ngrams([*hypotheses, *texts], MAX_ORDER):
        weights = _compute_tf_idf(ngrams, owners, num_examples)
        has_weights = has_weights or bool(weights[ngrams.rows >= num_examples].any())
        similarity += _compute_cosines(ngrams, weights, owners, num_examples)
    num_references = np.bincount(owners, minlength=num_examples)
    sums = np.bincount(owners, similarity * length_penalty, minlength=num_examples)
    values = 10 / MAX_ORDER * sums / num_references
    if num_examples == 1:
        return tally_mean(values, _ONE_IMAGE, is_undefined=True)
    return tally_mean(values, None if has_weights else _NO_WEIGHTS)


def _compute_tf_idf(ngrams: NGrams, owners: Int64[np.ndarray, " R"], num_examples: int) -> Float64[np.ndarray, " M"]:
    """tf-idf of every n-gram: its count times log(images / images whose references have it)."""
    is_reference = ngrams.rows >= num_examples
    pairs = np.sort(owners[ngrams.rows[is_reference] - num_examples] * ngrams.num_ids + ngrams.ids[is_reference])
    is_first = np.diff(pairs, prepend=-1) > 0  # an image counts once, however many of its references have the n-gram
    num_images = np.bincount(pairs[is_first] % ngrams.num_ids, minlength=ngrams.num_ids)
    idf = math.log(max(1, num_examples)) - np.log(np.maximum(1, num_images))
    weights: Float64[np.ndarray, " M"] = ngrams.counts * idf[ngrams.ids]
    return weights


def _compute_cosines(
    ngrams: NGrams, weights: Float64[np.ndarray, " M"], owners: Int64[np.ndarray, " R"], num_examples: int
) -> Float64[np.ndarray, " R"]:
    """Per reference: its cosine with its example's hypothesis, whose weights are clipped to the reference's."""
    is_hypothesis = ngrams.rows < num_examples
    norms = np.sqrt(np.bincount(ngrams.rows, weights**2, minlength=num_examples + len(owners)))
    hypothesis_keys = ngrams.pack_keys(ngrams.rows)[is_hypothesis]
    reference_rows = ngrams.rows[~is_hypothesis] - num_examples
    # The key of each reference's n-gram in its example's hypothesis.
    example_of_row = np.append(np.zeros(num_examples, np.int64), owners)
    paired_keys = ngrams.pack_keys(example_of_row[ngrams.rows])[~is_hypothesis]
    clipped = np.minimum(look_up(hypothesis_keys, weights[is_hypothesis], paired_keys), weights[~is_hypothesis])
    dots = np.bincount(reference_rows, clipped * weights[~is_hypothesis], minlength=len(owners))
    scale = norms[:num_examples][owners] * norms[num_examples:]
    cosines: Float64[np.ndarray, " R"] = np.divide(dots, scale, out=np.zeros(len(owners)), where=scale > 0)
    return cosines
