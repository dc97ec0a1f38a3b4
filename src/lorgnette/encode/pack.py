"""Several examples in one row: what a forward pass eats.

    tokens   | s s s I I I u u a a | s s s I I I u a a a |      s system, I image, u user, a assistant
    segments | 0 ───────────────── | 1 ───────────────── |      attention stays inside a segment
    labels                   a a e               a a a e        each predicted by the row before it

Rows behind the last one that predicts a label are left out: in a causal model nothing depends on them.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from lorgnette.types import IGNORED, Encoded, PackedBatch, PictureGrid


def pack(examples: Sequence[Encoded], labels_in_step: int) -> PackedBatch:
    """One forward pass. Every label weighs 1/labels_in_step, the labels of the whole optimizer step: the passes of a
    step add up to the mean over its labels however the step was cut."""
    kept = [_needed(encoded) for encoded in examples]
    starts = np.cumsum([0, *kept], dtype=np.int32)
    offsets: dict[PictureGrid, int] = {}
    features = 0
    label_rows, targets, image_rows, feature_rows = [], [], [], []
    for encoded, start, length in zip(examples, starts.tolist(), kept, strict=False):
        rows = np.flatnonzero(encoded.labels != IGNORED)
        label_rows.append(start + rows - 1)
        targets.append(encoded.labels[rows])
        for grid, at in zip(encoded.grids, encoded.image_starts, strict=True):
            if at >= length:
                continue
            if grid not in offsets:
                offsets[grid] = features
                features += grid.tokens
            image_rows.append(start + at + np.arange(grid.tokens))
            feature_rows.append(offsets[grid] + np.arange(grid.tokens))
    count = sum(len(rows) for rows in targets)
    return PackedBatch(
        tokens=np.concatenate([e.tokens[:n] for e, n in zip(examples, kept, strict=True)]),
        positions=np.concatenate([e.positions[:, :n] for e, n in zip(examples, kept, strict=True)], axis=1),
        starts=starts,
        image_rows=_joined(image_rows),
        feature_rows=_joined(feature_rows),
        label_rows=_joined(label_rows),
        targets=_joined(targets),
        weights=np.full(count, 1 / labels_in_step, np.float32),
        grids=tuple(offsets),
        examples=tuple(e.example for e in examples),
    )


def passes(examples: Sequence[Encoded], most_tokens: int) -> list[PackedBatch]:
    """One optimizer step, cut in order into passes of at most `most_tokens` tokens (one example at the least)."""
    labels = sum(encoded.label_count for encoded in examples)
    groups: list[list[Encoded]] = [[]]
    tokens = 0
    for encoded in examples:
        if groups[-1] and tokens + len(encoded.tokens) > most_tokens:
            groups.append([])
            tokens = 0
        groups[-1].append(encoded)
        tokens += len(encoded.tokens)
    return [pack(group, labels) for group in groups]


def _needed(encoded: Encoded) -> int:
    """Rows up to the one that predicts the last label."""
    return int(np.flatnonzero(encoded.labels != IGNORED)[-1])


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int32)
