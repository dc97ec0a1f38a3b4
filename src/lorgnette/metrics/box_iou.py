"""Boxes in answers: intersection over union, and the share of boxes with an IoU of 0.5 or more.

Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010, §4.2 (IoU, one prediction per box, threshold
0.5). RefCOCO results are reported in "accuracy at 0.5". Two notations are read, within any text: `(x1,y1),(x2,y2)` of
Qwen-VL and Qwen2-VL, and `[x1,y1,x2,y2]` of Qwen2.5-VL's JSON. Coordinates are compared as written: hypothesis and
reference must use one scale.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorgnette.metrics.score import Tally, tally_mean

Box = tuple[float, float, float, float]

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)|\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def parse_boxes(text: str) -> list[Box]:
    """The boxes in a text, as (left, top, right, bottom)."""
    boxes = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups() if number is not None)
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return boxes


def iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union; two equal boxes without area have 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - intersection
    return intersection / union if union else float(a == b)


def box_iou(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """0 … 1: summed IoU of matched boxes over the larger number of boxes; best reference, mean over examples. If a
    reference has no box, an answer without a box scores 1."""
    return _score_examples(hypotheses, references, min_iou=0.0)


def box_accuracy(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """As box_iou, but a match counts 1 at an IoU of 0.5 or more, and 0 below."""
    tally = _score_examples(hypotheses, references, min_iou=0.5)
    return replace(tally, is_proportion=bool(np.isin(tally.per_example, (0, 1)).all()))


def _score_examples(hypotheses: Sequence[str], references: Sequence[Sequence[str]], min_iou: float) -> Tally:
    reference_boxes = [[parse_boxes(text) for text in texts] for texts in references]
    values = [
        max(_match_boxes(parse_boxes(hypothesis), boxes, min_iou) for boxes in alternatives)
        for hypothesis, alternatives in zip(hypotheses, reference_boxes, strict=True)
    ]
    is_undefined = not any(map(any, reference_boxes))
    note = "no reference has a box" if is_undefined else None
    return tally_mean(np.array(values, np.float64), note, is_undefined=is_undefined)


def _match_boxes(predictions: list[Box], references: list[Box], min_iou: float) -> float:
    """Greedy matching from the largest IoU down; every box is matched at most once."""
    if not predictions or not references:
        return float(predictions == references)
    pairs = [(iou(a, b), i, j) for i, a in enumerate(predictions) for j, b in enumerate(references)]
    total, matched_predictions, matched_references = 0.0, set[int](), set[int]()
    for overlap, i, j in sorted(pairs, reverse=True):
        if i not in matched_predictions and j not in matched_references and overlap >= min_iou:
            matched_predictions.add(i)
            matched_references.add(j)
            total += 1.0 if min_iou else overlap
    return total / max(len(predictions), len(references))
