"""Several examples in one row: what a forward pass eats.

    tokens   s s s I I I u u a a │ s s s I I I u a a a      s system, I image, u user, a assistant
    ends    10 ───────────────── │20 ─────────────────      the rows that may see one: attention stays inside an example
    labels                 a a e │             a a a e      each predicted by the row before it

Rows behind the last one that predicts a label are left out: in a causal model nothing depends on them. Where rows are
shared (`share.py`), an example adds what the one before it has not:

    tokens   s s s I I I u u a a │ a a a
    ends    13 ───────────── 10─ │13 ───
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from lorgnette.processing.prefix_tree import PrefixTree, Share
from lorgnette.types import IGNORE_INDEX, Encoded, ImageGrid, PackedBatch

__all__ = ["Share", "build_prefix_trees", "pack", "split_into_microbatches"]


def pack(examples: Sequence[Encoded], num_labels_in_step: int, *, prefix_sharing: Share = "none") -> PackedBatch:
    """One forward pass. Every label weighs 1/labels_in_step, the labels of the whole optimizer step: the passes of a
    step add up to the mean over its labels however the step was cut."""
    tree = PrefixTree(prefix_sharing)
    for encoded in examples:
        tree.try_add(encoded)
    return _pack_tree(tree, num_labels_in_step)


def split_into_microbatches(
    examples: Sequence[Encoded], max_tokens: int, *, prefix_sharing: Share = "none"
) -> list[PackedBatch]:
    """One optimizer step, cut into passes."""
    labels = sum(encoded.num_labels for encoded in examples)
    return [
        _pack_tree(tree, labels) for tree in build_prefix_trees(examples, max_tokens, prefix_sharing=prefix_sharing)
    ]


def build_prefix_trees(
    examples: Iterable[Encoded], max_tokens: int, *, prefix_sharing: Share = "none"
) -> list[PrefixTree]:
    """The examples of each pass, in order: at most `most_tokens` rows, counted as they are computed: shared ones once
    (one example at the least)."""
    trees = [PrefixTree(prefix_sharing)]
    for encoded in examples:
        if not trees[-1].try_add(encoded, max_tokens):
            trees.append(PrefixTree(prefix_sharing))
            trees[-1].try_add(encoded)
    return trees


def _pack_tree(tree: PrefixTree, num_labels_in_step: int) -> PackedBatch:
    """Row after row in the tree's order. Labels and examples stand in the order in which they were given."""
    examples, paths = tree.examples, _locate_tokens(tree)
    own = [
        (examples[i], slice(shared, tree.used_lengths[i]))
        for i, shared in zip(tree.order, tree.shared_lengths, strict=True)
    ]
    labels = [np.flatnonzero(encoded.labels != IGNORE_INDEX) for encoded in examples]
    image_rows, feature_rows = [], []
    offsets: dict[ImageGrid, int] = {}
    features = 0
    for i, (encoded, added) in zip(tree.order, own, strict=True):
        for grid, at in zip(encoded.grids, encoded.image_starts, strict=True):
            if not added.start <= at < added.stop:
                continue
            if grid not in offsets:
                offsets[grid] = features
                features += grid.num_tokens
            image_rows.append(paths[i][at : at + grid.num_tokens])
            feature_rows.append(offsets[grid] + np.arange(grid.num_tokens))
    return PackedBatch(
        input_ids=_concatenate(encoded.input_ids[added] for encoded, added in own),
        position_ids=np.concatenate([encoded.position_ids[:, added] for encoded, added in own], axis=1),
        visible_until=_compute_visible_until(tree),
        image_token_indices=_concatenate(image_rows),
        feature_indices=_concatenate(feature_rows),
        label_indices=_concatenate(path[rows - 1] for path, rows in zip(paths, labels, strict=True)),
        targets=_concatenate(encoded.labels[rows] for encoded, rows in zip(examples, labels, strict=True)),
        label_weights=np.full(sum(map(len, labels)), 1 / num_labels_in_step, np.float32),
        grids=tuple(offsets),
        examples=tuple(encoded.example for encoded in examples),
    )


def _locate_tokens(tree: PrefixTree) -> list[Int32[np.ndarray, " T"]]:
    """The rows of every example in the pass, those that it shares first."""
    paths, path, end = [np.empty(0, np.int32)] * len(tree.used_lengths), np.empty(0, np.int32), 0
    for i, shared in zip(tree.order, tree.shared_lengths, strict=True):
        added = tree.used_lengths[i] - shared
        paths[i] = path = np.concatenate([path[:shared], np.arange(end, end + added, dtype=np.int32)])
        end += added
    return paths


def _compute_visible_until(tree: PrefixTree) -> Int32[np.ndarray, " T"]:
    """Behind the last row that hangs on each: from the last example to the first, where the next one begins that has
    not so many rows in common."""
    begin = tree.num_tokens
    ends, next_without = np.empty(tree.num_tokens, np.int32), np.full(max(tree.used_lengths), tree.num_tokens, np.int32)
    for i, shared in zip(reversed(tree.order), reversed(tree.shared_lengths), strict=True):
        end, begin = begin, begin - (tree.used_lengths[i] - shared)
        ends[begin:end] = next_without[shared : tree.used_lengths[i]]
        next_without[shared:] = begin
    return ends


def _concatenate(parts: Iterable[np.ndarray]) -> Int32[np.ndarray, " n"]:
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int32)
