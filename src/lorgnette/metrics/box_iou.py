"""Boxes in answers: intersection over union, the share with an IoU of 0.5 or more, and mean average precision.

Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010, §4.2 (IoU, one prediction per box, threshold
0.5). RefCOCO results are reported in "accuracy at 0.5". Average precision is COCO's (average_precision.py). An answer
and its reference are in one scale (box_answers.py).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from lorgnette.metrics.average_precision import (
    Matches,
    compute_alone,
    compute_overlaps,
    match_boxes,
    tally_average_precision,
)
from lorgnette.metrics.box_answers import Boxes
from lorgnette.metrics.labels import normalize_label
from lorgnette.metrics.score import Tally, tally_mean
from lorgnette.types import PixelBox

_NO_BOX = "no reference has a box"


def box_iou(hypotheses: Sequence[Boxes], references: Sequence[Sequence[Boxes]]) -> Tally:
    """0 … 1: summed IoU of matched boxes over the larger number of boxes; best reference, mean over examples. If a
    reference has no box, an answer without a box scores 1. Labels do not count."""
    return _score_examples(hypotheses, references, min_iou=0.0)


def box_accuracy(hypotheses: Sequence[Boxes], references: Sequence[Sequence[Boxes]]) -> Tally:
    """As box_iou, but a match counts 1 at an IoU of 0.5 or more, and 0 below."""
    tally = _score_examples(hypotheses, references, min_iou=0.5)
    return replace(tally, is_proportion=bool(np.isin(tally.per_example, (0, 1)).all()))


def average_precision(hypotheses: Sequence[Boxes], references: Sequence[Sequence[Boxes]]) -> tuple[Tally, Tally, Tally]:
    """AP over IoU 0.50:0.95, AP50 and AP75, of the boxes of each label; the mean over the labels of the references.

    A box without a score has 1. If no reference has a label, labels do not count. With several references, the one
    that gives the answer alone the largest AP.
    """
    has_labels = any(box.label for texts in references for boxes in texts for box in boxes)
    known_labels = {label for texts in references for boxes in texts for label in _group(boxes, has_labels)}
    examples = []
    for hypothesis, alternatives in zip(hypotheses, references, strict=True):
        answers = _group(hypothesis, has_labels)
        matches = [_match_labels(answers, _group(boxes, has_labels), known_labels) for boxes in alternatives]
        best = max(matches, key=lambda each: float(compute_alone(each).mean())) if len(matches) > 1 else matches[0]
        examples.append(best)
    return tally_average_precision(examples, _describe_scores(hypotheses) if known_labels else _NO_BOX)


def _match_labels(answers: dict[str, Boxes], references: dict[str, Boxes], known_labels: set[str]) -> Matches:
    return {
        label: match_boxes(
            _list_corners(answers.get(label, ())),
            np.array([1.0 if box.score is None else box.score for box in answers.get(label, ())]),
            _list_corners(references.get(label, ())),
        )
        for label in sorted(known_labels & {*answers, *references})
    }


def _group(boxes: Boxes, has_labels: bool) -> dict[str, Boxes]:
    """By label, in order."""
    groups: dict[str, list[PixelBox]] = {}
    for box in boxes:
        groups.setdefault(normalize_label(box.label) if has_labels else "", []).append(box)
    return {label: tuple(group) for label, group in groups.items()}


def _describe_scores(hypotheses: Sequence[Boxes]) -> str:
    """What the scores of the boxes are, in words."""
    scores = [box.score for boxes in hypotheses for box in boxes]
    num_unknown = sum(score is None for score in scores)
    if not scores:
        return "no answer has a box"
    if num_unknown == 0:
        return "a box's score is the mean probability of its tokens"
    which = "every box" if num_unknown == len(scores) else f"{num_unknown} of {len(scores)} boxes"
    return f"{which} without token probabilities: score 1, and ties keep the answer's order"


def _list_corners(boxes: Boxes) -> Float64[np.ndarray, "D 4"]:
    return np.array([box.corners for box in boxes], np.float64).reshape(-1, 4)


def _score_examples(hypotheses: Sequence[Boxes], references: Sequence[Sequence[Boxes]], min_iou: float) -> Tally:
    values = [
        max(_match_boxes(hypothesis, boxes, min_iou) for boxes in alternatives)
        for hypothesis, alternatives in zip(hypotheses, references, strict=True)
    ]
    is_undefined = not any(map(any, references))
    note = _NO_BOX if is_undefined else None
    return tally_mean(np.array(values, np.float64), note, is_undefined=is_undefined)


def _match_boxes(predictions: Boxes, references: Boxes, min_iou: float) -> float:
    """Greedy matching from the largest IoU down; every box is matched at most once."""
    if not predictions or not references:
        return float(not predictions and not references)
    first, second = _list_corners(predictions), _list_corners(references)
    overlaps = compute_overlaps(first, second)
    overlaps[(first[:, None] == second[None, :]).all(axis=2)] = 1.0  # two equal boxes without area
    limit = max(min_iou, np.spacing(0.0))
    pairs = np.flatnonzero(overlaps.ravel() >= limit)[::-1]
    pairs = pairs[np.argsort(-overlaps.ravel()[pairs], kind="stable")]
    total, is_free = 0.0, (np.ones(len(first), np.bool_), np.ones(len(second), np.bool_))
    for i, j in zip(*divmod(pairs, len(second)), strict=True):
        if is_free[0][i] and is_free[1][j]:
            is_free[0][i] = is_free[1][j] = False
            total += 1.0 if min_iou else float(overlaps[i, j])
            if not is_free[0].any() or not is_free[1].any():
                break
    return total / max(len(predictions), len(references))
