"""Mean average precision of boxes by COCO's definition: AP over IoU 0.50:0.95, AP50 and AP75.

Lin et al.: Microsoft COCO, ECCV 2014; its evaluation server's `pycocotools`, with which tests compare: ten IoU
thresholds, 101 recall points, each label is a category, at most 100 boxes of a label in an image, no areas, no crowds.
Boxes are ranked by their score. Equal scores keep the order of the examples, and of the boxes in an answer.

    boxes of an example ── match_boxes ──▶ hits per threshold ── ranked over examples ──▶ precision at 101 recalls

The rank of a box depends on all examples, so that AP is no function of sums of a few numbers. `RankedTally` sums how
often each example is in a set. An example that is drawn twice counts twice at its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from lorgnette.metrics.score import Tally

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
ALL_THRESHOLDS, AT_50, AT_75 = tuple(range(10)), (0,), (5,)
"""Indices into IOU_THRESHOLDS."""
RECALL_POINTS = np.linspace(0, 1, 101)
MAX_BOXES = 100
"""Of a label in an image; those with the highest scores count."""
_MAX_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class LabelMatches:
    """The boxes with one label in one example, from the highest score down.

    hits: whether a box is matched at each IoU threshold. num_references: boxes with this label in the reference.
    """

    scores: Float64[np.ndarray, " D"]
    hits: Bool[np.ndarray, "T D"]
    num_references: int


Thresholds = tuple[int, ...]
Matches = Mapping[str, LabelMatches]
"""Of one example, by label. Labels that no reference of any example has are left out: they have no AP."""


def match_boxes(
    boxes: Float64[np.ndarray, "D 4"], scores: Float64[np.ndarray, " D"], references: Float64[np.ndarray, "G 4"]
) -> LabelMatches:
    """Match the boxes of one label in one example. A box takes the free reference with the largest IoU, if that reaches
    the threshold; of equal ones the last. Boxes are (left, top, right, bottom)."""
    order = np.argsort(-scores, kind="stable")[:MAX_BOXES]
    overlaps = compute_overlaps(boxes[order], references)
    hits = np.zeros((len(IOU_THRESHOLDS), len(order)), np.bool_)
    is_free = np.ones((len(IOU_THRESHOLDS), len(references)), np.bool_)
    rows = np.arange(len(IOU_THRESHOLDS))
    for rank, row in enumerate(overlaps if len(references) else ()):
        candidates = np.where(is_free & (row >= IOU_THRESHOLDS[:, None]), row, -1.0)[:, ::-1]
        best = candidates.argmax(axis=1)
        hits[:, rank] = candidates[rows, best] >= 0
        is_free[rows, len(references) - 1 - best] &= ~hits[:, rank]
    return LabelMatches(scores[order], hits, len(references))


def compute_overlaps(
    first: Float64[np.ndarray, "D 4"], second: Float64[np.ndarray, "G 4"]
) -> Float64[np.ndarray, "D G"]:
    """IoU of all pairs of boxes; 0 where one has no area."""
    with np.errstate(all="ignore"):  # coordinates may be of any size
        low = np.maximum(first[:, None, :2], second[None, :, :2])
        high = np.minimum(first[:, None, 2:], second[None, :, 2:])
        intersection = np.maximum(0.0, high - low).prod(axis=2)
        areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
        union = areas[0][:, None] + areas[1][None, :] - intersection
        return np.nan_to_num(np.where(intersection > 0, intersection / union, 0.0))


def tally_average_precision(examples: Sequence[Matches], note: str | None = None) -> tuple[Tally, Tally, Tally]:
    """AP over all thresholds, AP50 and AP75 of matched examples."""
    alone = np.array([compute_alone(matches) for matches in examples]).reshape(-1, len(IOU_THRESHOLDS))
    first, second, third = (
        _build_tally(examples, alone, thresholds, note) for thresholds in (ALL_THRESHOLDS, AT_50, AT_75)
    )
    return first, second, third


def compute_alone(matches: Matches) -> Float64[np.ndarray, " T"]:
    """AP of one example at each threshold."""
    values = [
        _average_precision(
            found.hits.T.cumsum(axis=0), np.arange(1.0, len(found.scores) + 1)[:, None], found.num_references
        )
        for found in matches.values()
        if found.num_references
    ]
    has_boxes = any(len(found.scores) for found in matches.values())
    return np.mean(values, axis=0) if values else np.full(len(IOU_THRESHOLDS), float(not has_boxes))


def _build_tally(
    examples: Sequence[Matches], alone: Float64[np.ndarray, "N T"], thresholds: Thresholds, note: str | None
) -> Tally:
    places = np.arange(len(examples))
    ranking = _Ranking.from_examples(examples, places, thresholds)
    return RankedTally(
        alone[:, list(thresholds)].mean(axis=1), np.zeros((len(examples), 0)), ranking.compute_precision, note,
        is_undefined=not ranking.curves, examples=tuple(examples), thresholds=thresholds, rows=places,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class RankedTally(Tally):
    """A metric of ranked boxes. Its sums are the weights of the examples.

    rows: [N] the row of the weights that each example has, as `counts` has one per example or per group; -1 for an
    example of the other system, after `align`.
    """

    examples: tuple[Matches, ...] = ()
    thresholds: Thresholds = ALL_THRESHOLDS
    rows: Int64[np.ndarray, " N"] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def total(self) -> Float64[np.ndarray, "1 N"]:
        return self.sum_counts(np.ones((1, len(self.counts))))

    def sum_counts(self, weights: Float64[np.ndarray, "B G"]) -> Float64[np.ndarray, "B N"]:
        return np.where(self.rows >= 0, weights[:, self.rows], 0.0)

    def group(self, groups: Sequence[int]) -> "RankedTally":
        return replace(self, counts=np.zeros((max(groups) + 1, 0)), rows=np.array(groups, np.int64))

    def align(self, other: Tally) -> tuple[Tally, Tally]:
        """Both systems' examples in one ranking, so that a set may have some examples of each."""
        assert isinstance(other, RankedTally)
        examples, places = self.examples + other.examples, np.tile(np.arange(len(self.examples)), 2)
        compute = _Ranking.from_examples(examples, places, self.thresholds).compute_precision
        absent = np.full(len(self.rows), -1)
        first, second = np.concatenate([self.rows, absent]), np.concatenate([absent, other.rows])
        return replace(self, compute_value=compute, rows=first), replace(other, compute_value=compute, rows=second)


@dataclass(frozen=True, slots=True)
class _Curve:
    """The ranked boxes of one label.

    examples: [D] of each box. hits: the distinct rows of all thresholds, each for `num_thresholds` of them.
    num_references: [N] of each example.
    """

    examples: Int64[np.ndarray, " D"]
    hits: Bool[np.ndarray, "U D"]
    num_thresholds: Int64[np.ndarray, " U"]
    num_references: Float64[np.ndarray, " N"]

    def compute_precision(self, weights: Float64[np.ndarray, "B N"]) -> Float64[np.ndarray, " B"]:
        """The mean precision at 101 recalls and all thresholds."""
        # One row per box, and a column per set: all steps go along the rows.
        of_boxes = np.ascontiguousarray(weights.T)[self.examples]
        num_boxes = np.maximum(of_boxes.cumsum(axis=0), np.spacing(1))
        num_references = np.maximum(weights @ self.num_references, np.spacing(1))
        value = np.zeros(len(weights))
        for hits, count in zip(self.hits, self.num_thresholds, strict=True):
            # Recall and the largest precision from there on change at hits only.
            value += count * _average_precision(of_boxes[hits].cumsum(axis=0), num_boxes[hits], num_references)
        return value / float(self.num_thresholds.sum())


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The curves of the labels that references have."""

    curves: tuple[_Curve, ...]

    @classmethod
    def from_examples(
        cls, examples: Sequence[Matches], places: Int64[np.ndarray, " N"], thresholds: Thresholds
    ) -> "_Ranking":
        """places: of each example in the data, for the order of equal scores."""
        labels = dict.fromkeys(label for matches in examples for label in matches)
        return cls(tuple(_rank(label, examples, places, thresholds) for label in labels))

    def compute_precision(self, weights: Float64[np.ndarray, "B N"]) -> Float64[np.ndarray, " B"]:
        """The mean over the labels that the references of a set have. A set without any has 1 if its answers have no
        boxes either, else 0."""
        num_columns = max((len(curve.examples) for curve in self.curves), default=0)
        num_rows = max(1, _MAX_CELLS // max(1, num_columns))
        parts = [self._compute(weights[start : start + num_rows]) for start in range(0, len(weights), num_rows)]
        return np.concatenate([np.zeros(0), *parts])

    def _compute(self, weights: Float64[np.ndarray, "B N"]) -> Float64[np.ndarray, " B"]:
        num_labels, value, num_boxes = np.zeros((3, len(weights)))
        for curve in self.curves:
            is_present = weights @ curve.num_references > 0
            value += np.where(is_present, curve.compute_precision(weights), 0.0)
            num_labels += is_present
            num_boxes += weights[:, curve.examples].sum(axis=1)
        return np.where(num_labels > 0, value / np.maximum(1, num_labels), num_boxes == 0)


def _average_precision(
    num_hits: Num[np.ndarray, "D B"], num_boxes: Num[np.ndarray, "D _"], num_references: Any
) -> Float64[np.ndarray, " B"]:
    """The mean precision at 101 recalls of B rankings. num_hits, num_boxes: up to each box of a ranking."""
    envelope = np.maximum.accumulate((num_hits / num_boxes)[::-1], axis=0)[::-1]
    num_points = _count_recall_points(num_hits / num_references)
    num_points[1:] -= num_points[:-1].copy()
    mean: Float64[np.ndarray, " B"] = (envelope * num_points).sum(axis=0) / len(RECALL_POINTS)
    return mean


def _count_recall_points(recall: Float64[np.ndarray, "D B"]) -> Int64[np.ndarray, "D B"]:
    """How many of RECALL_POINTS each recall reaches, as np.searchsorted would find."""
    last = len(RECALL_POINTS) - 1
    index = (recall * last).astype(np.int64)  # the last point that is reached, but for rounding
    index -= RECALL_POINTS[index] > recall
    return index + 1 + (RECALL_POINTS[np.minimum(index + 1, last)] <= recall) * (index < last)


def _rank(label: str, examples: Sequence[Matches], places: Int64[np.ndarray, " N"], thresholds: Thresholds) -> _Curve:
    having = [i for i, matches in enumerate(examples) if label in matches]
    found = [examples[i][label] for i in having]
    num_references = np.zeros(len(examples))
    num_references[having] = [matches.num_references for matches in found]
    of_boxes = np.repeat(having, [len(matches.scores) for matches in found])
    ranks = np.concatenate([np.arange(len(matches.scores)) for matches in found])
    scores = np.concatenate([matches.scores for matches in found])
    order = np.lexsort((ranks, places[of_boxes], -scores))
    hits = np.concatenate([matches.hits[list(thresholds)] for matches in found], axis=1)[:, order]
    distinct, counts = np.unique(hits, axis=0, return_counts=True) if len(order) else (hits[:1], np.array([len(hits)]))
    return _Curve(of_boxes[order], distinct, counts, num_references)
