"""Sizes of micro-batches: which sizes get a CUDA graph, and to which of them a micro-batch is padded.

Padding costs the device time in every step; a graph costs the host time once. Both are counted in tokens here, and
`plan_shapes` chooses the sizes that cost least for the micro-batches that will come.

A micro-batch's shape depends on nothing but the plan and its own size: matrices of other sizes may be multiplied by
other kernels, which round otherwise, and a resumed run must have the numbers of one that was not interrupted. A run
that was out of memory goes on without a plan; where it is resumed, there is one for its smaller micro-batches.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from lorgnette.models.model_config import TextConfig
from lorgnette.planning.limits import MAX_GRAPHS_AHEAD, pad_labels, pad_last_layer_tokens, pad_tokens, round_up
from lorgnette.types import PackedBatch

_CAPTURE_FLOP = 1.0e12
"""Operations of a large GPU in the time in which the host captures one layer: about 3 ms."""


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Sizes of a micro-batch: tokens T, query tokens of the last layer M, labels R."""

    tokens: int
    last_layer_tokens: int
    labels: int

    @classmethod
    def from_batch(cls, batch: PackedBatch) -> "BatchShape":
        """The exact sizes, without padding."""
        return cls(len(batch.input_ids), len(np.unique(batch.label_indices)), len(batch.targets))

    @classmethod
    def covering(cls, shapes: Sequence["BatchShape"]) -> "BatchShape":
        """The smallest padded shape that covers all of these exact sizes."""
        tokens = pad_tokens(max(shape.tokens for shape in shapes))
        return cls._pad(tokens, max(s.last_layer_tokens for s in shapes), max(shape.labels for shape in shapes))

    @classmethod
    def _pad(cls, padded_tokens: int, last_layer_tokens: int, labels: int) -> "BatchShape":
        return cls(padded_tokens, pad_last_layer_tokens(last_layer_tokens, padded_tokens), pad_labels(labels))

    def pad(self) -> "BatchShape":
        """One of few shapes, for a batch of this size that has no planned shape; 6 % larger or less."""
        return self._pad(round_up(self.tokens + 1, 16), self.last_layer_tokens, self.labels)

    def covers(self, shape: "BatchShape") -> bool:
        """Whether a batch of `shape` can be padded to this shape."""
        has_room = self.last_layer_tokens >= shape.last_layer_tokens and self.labels >= shape.labels
        return has_room and self.tokens > shape.tokens


@dataclass(frozen=True, slots=True)
class ShapePlan:
    """shapes: padded, the largest first. least_tokens: of the smallest batch that they were chosen for."""

    shapes: tuple[BatchShape, ...] = ()
    least_tokens: int = 0

    def select(self, exact: BatchShape) -> BatchShape:
        """The shape to which a batch of this size is padded: the smallest of the plan that covers it.

        Another, if none does, or if the batch is smaller than the planned ones and than half of that shape.
        """
        shape = min((s for s in self.shapes if s.covers(exact)), key=lambda s: s.tokens, default=None)
        if shape is None or exact.tokens < min(self.least_tokens, shape.tokens // 2):
            return exact.pad()
        return shape


def count_capture_tokens(config: TextConfig) -> int:
    """The tokens that a large GPU computes, forward and backward, while the host captures a graph.

    Both are proportional to the number of layers.
    """
    values = sum(out_features * in_features for out_features, in_features in config.linear_shapes.values())
    return int(_CAPTURE_FLOP / (4 * values))


def plan_shapes(
    shapes: Sequence[BatchShape], capture_tokens: int, repeats: float = 1.0, most: int = MAX_GRAPHS_AHEAD
) -> ShapePlan:
    """At most `most` padded shapes that cover these exact sizes. [] has none.

    They have the least cost: padding tokens of all batches, each of which comes `repeats` times, and capture_tokens for
    every shape. A shape covers all sizes between two numbers of tokens, so an optimal choice for the smaller sizes is
    part of the optimal choice for all (dynamic programming).
    """
    if not shapes:
        return ShapePlan()
    counts = Counter(pad_tokens(shape.tokens) for shape in shapes)
    sizes = sorted(counts)
    num_batches = [0, *accumulate(counts[size] for size in sizes)]
    num_tokens = [0, *accumulate(counts[size] * size for size in sizes)]

    def count_padding(start: int, end: int) -> int:
        """Of the batches of sizes[start:end] in one shape."""
        return sizes[end - 1] * (num_batches[end] - num_batches[start]) - (num_tokens[end] - num_tokens[start])

    # best[end]: the least padding of the `end` smallest sizes in as many shapes as rounds, and the ends of the shapes.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    plans = []
    for num_shapes in range(1, min(most, len(sizes)) + 1):
        best = {
            end: min(
                (padding + count_padding(start, end), (*ends, end))
                for start, (padding, ends) in best.items()
                if start < end
            )
            for end in range(num_shapes, len(sizes) + 1)
        }
        padding, ends = best[len(sizes)]
        plans.append((repeats * padding + capture_tokens * num_shapes, ends))
    _, ends = min(plans)

    # A larger shape has room for as many labels as a smaller one: a batch with more labels can move up.
    limits = [sizes[end - 1] for end in reversed(ends)]
    covering = (BatchShape.covering([s for s in shapes if pad_tokens(s.tokens) <= limit]) for limit in limits)
    return ShapePlan(tuple(covering), min(shape.tokens for shape in shapes))
