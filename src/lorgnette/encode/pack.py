"""Several examples in one row: what a forward pass eats.

    tokens   | s s s I I I u u a a | s s s I I I u a a a |      s system, I image, u user, a assistant
    segments | 0 ───────────────── | 1 ───────────────── |      attention stays inside a segment
    labels                   a a e               a a a e        each predicted by the row before it

Rows behind the last one that predicts a label are left out: in a causal model nothing depends on them. Where rows are
shared (`share.py`), a segment is what an example adds, and its keys are all rows the example has:

    tokens   | s s s I I I u u a a | a a a |
    segments | 0 ───────────────── | 1 ─── |
    keys     | 0 1 2 3 4 5 6 7 8 9 | 0 1 2 3 4 5 6 7 10 11 12 |
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from lorgnette.encode.share import Share, Tree
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
    """Row after row, every example adds what it does not share."""
    paths = _paths(tree)
    examples, shared = tree.examples, [shared for _, shared in tree.branches]
    adding = [i for i, path in enumerate(paths) if len(path) > shared[i]]
    labels = [np.flatnonzero(encoded.labels != IGNORED) for encoded in examples]
    image_rows, feature_rows = [], []
    offsets: dict[PictureGrid, int] = {}
    features = 0
    for encoded, path, begin in zip(examples, paths, shared, strict=True):
        for grid, at in zip(encoded.grids, encoded.image_starts, strict=True):
            if not begin <= at < len(path):
                continue
            if grid not in offsets:
                offsets[grid] = features
                features += grid.tokens
            image_rows.append(path[at : at + grid.tokens])
            feature_rows.append(offsets[grid] + np.arange(grid.tokens))
    return PackedBatch(
        tokens=_joined(examples[i].tokens[shared[i] : len(paths[i])] for i in adding),
        positions=np.concatenate([examples[i].positions[:, shared[i] : len(paths[i])] for i in adding], axis=1),
        starts=_borders(len(paths[i]) - shared[i] for i in adding),
        key_rows=_joined(paths[i] for i in adding),
        key_starts=_borders(len(paths[i]) for i in adding),
        image_rows=_joined(image_rows),
        feature_rows=_joined(feature_rows),
        label_rows=_joined(path[rows - 1] for path, rows in zip(paths, labels, strict=True)),
        targets=_joined(encoded.labels[rows] for encoded, rows in zip(examples, labels, strict=True)),
        weights=np.full(sum(map(len, labels)), 1 / labels_in_step, np.float32),
        grids=tuple(offsets),
        examples=tuple(encoded.example for encoded in examples),
    )


def _paths(tree: Tree) -> list[Int32[np.ndarray, " T"]]:
    """The rows of every example in the pass, its ancestors' first."""
    paths: list[Int32[np.ndarray, " T"]] = []
    end = 0
    for kept, (parent, shared) in zip(tree.kept, tree.branches, strict=True):
        path = np.arange(end - shared, end - shared + kept, dtype=np.int32)
        if shared:
            path[:shared] = paths[parent][:shared]
        paths.append(path)
        end += kept - shared
    return paths


def _borders(lengths: Iterable[int]) -> Int32[np.ndarray, " B"]:
    return np.cumsum([0, *lengths], dtype=np.int32)


def _joined(parts: Iterable[np.ndarray]) -> Int32[np.ndarray, " n"]:
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int32)
