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

from lorgnette.processing.prefix_tree import Share, Tree
from lorgnette.types import IGNORED, Encoded, PackedBatch, PictureGrid

__all__ = ["Share", "cut", "pack", "passes"]


def pack(examples: Sequence[Encoded], labels_in_step: int, *, share: Share = "none") -> PackedBatch:
    """One forward pass. Every label weighs 1/labels_in_step, the labels of the whole optimizer step: the passes of a
    step add up to the mean over its labels however the step was cut."""
    tree = Tree(share)
    for encoded in examples:
        tree.take(encoded)
    return _packed(tree, labels_in_step)


def passes(examples: Sequence[Encoded], most_tokens: int, *, share: Share = "none") -> list[PackedBatch]:
    """One optimizer step, cut into passes."""
    labels = sum(encoded.label_count for encoded in examples)
    return [_packed(tree, labels) for tree in cut(examples, most_tokens, share=share)]


def cut(examples: Iterable[Encoded], most_tokens: int, *, share: Share = "none") -> list[Tree]:
    """The examples of each pass, in order: at most `most_tokens` rows, counted as they are computed: shared ones once
    (one example at the least)."""
    trees = [Tree(share)]
    for encoded in examples:
        if not trees[-1].take(encoded, most_tokens):
            trees.append(Tree(share))
            trees[-1].take(encoded)
    return trees


def _packed(tree: Tree, labels_in_step: int) -> PackedBatch:
    """Row after row in the tree's order. Labels and examples stand in the order in which they were given."""
    examples, paths = tree.examples, _paths(tree)
    own = [(examples[i], slice(shared, tree.kept[i])) for i, shared in zip(tree.order, tree.shared, strict=True)]
    labels = [np.flatnonzero(encoded.labels != IGNORED) for encoded in examples]
    image_rows, feature_rows = [], []
    offsets: dict[PictureGrid, int] = {}
    features = 0
    for i, (encoded, added) in zip(tree.order, own, strict=True):
        for grid, at in zip(encoded.grids, encoded.image_starts, strict=True):
            if not added.start <= at < added.stop:
                continue
            if grid not in offsets:
                offsets[grid] = features
                features += grid.tokens
            image_rows.append(paths[i][at : at + grid.tokens])
            feature_rows.append(offsets[grid] + np.arange(grid.tokens))
    return PackedBatch(
        tokens=_joined(encoded.tokens[added] for encoded, added in own),
        positions=np.concatenate([encoded.positions[:, added] for encoded, added in own], axis=1),
        ends=_ends(tree),
        image_rows=_joined(image_rows),
        feature_rows=_joined(feature_rows),
        label_rows=_joined(path[rows - 1] for path, rows in zip(paths, labels, strict=True)),
        targets=_joined(encoded.labels[rows] for encoded, rows in zip(examples, labels, strict=True)),
        weights=np.full(sum(map(len, labels)), 1 / labels_in_step, np.float32),
        grids=tuple(offsets),
        examples=tuple(encoded.example for encoded in examples),
    )


def _paths(tree: Tree) -> list[Int32[np.ndarray, " T"]]:
    """The rows of every example in the pass, those that it shares first."""
    paths, path, end = [np.empty(0, np.int32)] * len(tree.kept), np.empty(0, np.int32), 0
    for i, shared in zip(tree.order, tree.shared, strict=True):
        added = tree.kept[i] - shared
        paths[i] = path = np.concatenate([path[:shared], np.arange(end, end + added, dtype=np.int32)])
        end += added
    return paths


def _ends(tree: Tree) -> Int32[np.ndarray, " T"]:
    """Behind the last row that hangs on each: from the last example to the first, where the next one begins that has
    not so many rows in common."""
    begin = tree.rows
    ends, next_without = np.empty(tree.rows, np.int32), np.full(max(tree.kept), tree.rows, np.int32)
    for i, shared in zip(reversed(tree.order), reversed(tree.shared), strict=True):
        end, begin = begin, begin - (tree.kept[i] - shared)
        ends[begin:end] = next_without[shared : tree.kept[i]]
        next_without[shared:] = begin
    return ends


def _joined(parts: Iterable[np.ndarray]) -> Int32[np.ndarray, " n"]:
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int32)
