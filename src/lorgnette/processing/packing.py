"""Packs the examples of a micro-batch into one row of tokens without padding.

Two examples (s system, I image, u user, a answer, e end token):

    index           0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18
    input_ids       s  s  s  I  I  I  u  u  a  a  s  s  s  I  I  I  u  a  a
    visible_until  10 10 10 10 10 10 10 10 10 10 19 19 19 19 19 19 19 19 19
    predicts                             a  a  e                    a  a  e

The mask is one integer per token: key k is visible to the queries q with k ≤ q < visible_until[k], so attention stays
inside an example. Examples of 2, 3 and 1 tokens have visible_until = [2, 2, 5, 5, 5, 6].

The token before a label predicts it. Tokens behind the last such token are left out: in a causal model nothing depends
on them. With prefix sharing (`prefix_tree.py`) an example stores only the tokens that its predecessor does not have:

    index           0  1  2  3  4  5  6  7  8  9 10 11 12
    input_ids       s  s  s  I  I  I  u  u  a  a  a  a  a
    visible_until  13 13 13 13 13 13 13 13 10 10 13 13 13

The mask stays one integer per token. The packed row is a prefix tree in depth-first order, so the queries that may
attend to a key k are a contiguous range.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Int32, UInt64

from lorgnette.processing.dropout_keys import draw_dropout_keys, hash_tokens, identify_by_place
from lorgnette.processing.encoded_rows import RowSizes
from lorgnette.processing.prefix_tree import PrefixTree
from lorgnette.types import IGNORE_INDEX, Encoded, ImageGrid, PackedBatch


def pack(
    examples: Sequence[Encoded], num_labels_in_step: int, *, prefix_sharing: bool = False, step_key: int = 0
) -> PackedBatch:
    """Pack the examples into one micro-batch.

    Every label weighs 1/num_labels_in_step, the labels of the whole optimizer step: the micro-batches of a step add up
    to the mean over its labels, however the step is split. step_key: see `split_into_microbatches`.
    """
    tree = PrefixTree(prefix_sharing)
    for encoded in examples:
        tree.try_add(encoded)
    return _pack_tree(tree, range(len(examples)), num_labels_in_step, step_key)


def split_into_microbatches(
    examples: Sequence[Encoded],
    max_tokens: int,
    *,
    prefix_sharing: bool = False,
    step_key: int = 0,
    places: Sequence[int] | None = None,
) -> list[PackedBatch]:
    """One optimizer step as micro-batches of at most `max_tokens` tokens (but at least one example each).

    step_key: selects the dropout masks of the step (`derive_step_key`). places: the examples of the step to pack, if
    not all of them; the weights of their labels and their dropout masks stay those of the whole step.
    """
    places, sizes = range(len(examples)) if places is None else places, RowSizes.from_examples(examples)
    num_labels = int(sizes.num_labels.sum())
    trees = build_prefix_trees(
        (examples[place] for place in places), max_tokens, prefix_sharing=prefix_sharing,
        image_numbers={grid: number for number, grid in enumerate(sizes.distinct_grids)},
    )  # fmt: skip
    left = iter(places)
    return [_pack_tree(tree, list(islice(left, len(tree.examples))), num_labels, step_key) for tree in trees]


def build_prefix_trees(
    examples: Iterable[Encoded],
    max_tokens: int,
    *,
    prefix_sharing: bool = False,
    image_numbers: dict[ImageGrid, int] | None = None,
) -> list[PrefixTree]:
    """The examples of each micro-batch, in order. Shared tokens count once, as they are computed."""
    trees: list[PrefixTree] = []
    for encoded in examples:
        if not trees or not trees[-1].try_add(encoded, max_tokens):
            trees.append(PrefixTree(prefix_sharing, image_numbers))
            trees[-1].try_add(encoded)
    return trees


def _pack_tree(tree: PrefixTree, places: Sequence[int], num_labels_in_step: int, step_key: int) -> PackedBatch:
    """Tokens in the tree's order; labels and examples in the order in which they were added.

    places: of the examples in the step.
    """
    examples = tree.examples
    # For each example, the indices of its tokens in the packed row, those of its shared prefix first.
    token_indices = [np.empty(0, np.int32)] * len(examples)
    # The tokens that each example adds behind its shared prefix.
    added: list[tuple[Encoded, slice]] = []
    image_token_indices, feature_indices = [], []
    feature_offsets: dict[ImageGrid, int] = {}
    path, end, num_features = np.empty(0, np.int32), 0, 0
    for i, shared in zip(tree.order, tree.shared_lengths, strict=True):
        encoded, used_length = examples[i], tree.used_lengths[i]
        added.append((encoded, slice(shared, used_length)))
        start, end = end, end + used_length - shared
        token_indices[i] = path = np.concatenate([path[:shared], np.arange(start, end, dtype=np.int32)])
        # Images among the added tokens. An image that is used twice has its features once.
        for grid, image_start in zip(encoded.grids, encoded.image_starts, strict=True):
            if shared <= image_start < used_length:
                if grid not in feature_offsets:
                    feature_offsets[grid] = num_features
                    num_features += grid.num_tokens
                image_token_indices.append(path[image_start : image_start + grid.num_tokens])
                feature_indices.append(feature_offsets[grid] + np.arange(grid.num_tokens))
    # The token before a label predicts it.
    labels = [np.flatnonzero(encoded.labels != IGNORE_INDEX) for encoded in examples]
    return PackedBatch(
        input_ids=_concatenate(encoded.input_ids[own] for encoded, own in added),
        position_ids=np.concatenate([encoded.position_ids[:, own] for encoded, own in added], axis=1),
        visible_until=_compute_visible_until(tree),
        dropout_keys=draw_dropout_keys(_identify_tokens(tree, places), step_key),
        image_token_indices=_concatenate(image_token_indices),
        feature_indices=_concatenate(feature_indices),
        label_indices=_concatenate(indices[at - 1] for indices, at in zip(token_indices, labels, strict=True)),
        targets=_concatenate(encoded.labels[at] for encoded, at in zip(examples, labels, strict=True)),
        label_weights=np.full(sum(map(len, labels)), 1 / num_labels_in_step, np.float32),
        grids=tuple(feature_offsets),
        examples=tuple(encoded.example for encoded in examples),
    )


def _compute_visible_until(tree: PrefixTree) -> Int32[np.ndarray, " T"]:
    """[T]: for each token, the index behind the last token that continues it.

    Walks from the last example to the first. A token at depth d of an example is visible up to the start of the next
    example that shares at most d tokens with its predecessor: `next_start[d]`.
    """
    start = tree.num_tokens
    visible_until = np.empty(tree.num_tokens, np.int32)
    next_start = np.full(max(tree.used_lengths), tree.num_tokens, np.int32)
    for i, shared in zip(reversed(tree.order), reversed(tree.shared_lengths), strict=True):
        end, start = start, start - (tree.used_lengths[i] - shared)
        visible_until[start:end] = next_start[shared : tree.used_lengths[i]]
        next_start[shared:] = start
    return visible_until


def _identify_tokens(tree: PrefixTree, places: Sequence[int]) -> UInt64[np.ndarray, " T"]:
    """[T]: what identifies each token in the step (dropout_keys.py)."""
    identities = []
    path = np.empty(0, np.uint64)
    for i, shared in zip(tree.order, tree.shared_lengths, strict=True):
        if tree.prefix_sharing:
            path = np.concatenate([path[:shared], hash_tokens(tree.token_keys[i][shared:])])
            identities.append(path.cumsum()[shared:])
        else:
            identities.append(identify_by_place(places[i], tree.used_lengths[i]))
    return np.concatenate(identities)


def _concatenate(arrays: Iterable[np.ndarray]) -> Int32[np.ndarray, " n"]:
    return np.concatenate([*arrays, np.empty(0, np.int64)]).astype(np.int32)
