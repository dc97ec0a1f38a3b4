"""Boxes in answers: intersection over union, and the share of boxes that are right at 0.5.

Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010, §4.2 (IoU, one prediction to one box, the
threshold 0.5); "accuracy at 0.5" is what RefCOCO is reported in. Two written forms are read, with any text around:
`(x1,y1),(x2,y2)` of Qwen-VL and Qwen2-VL, and `[x1,y1,x2,y2]` of Qwen2.5-VL's JSON. Coordinates are compared as they
are written: hypothesis and reference must use one scale.
"""

import re
from collections.abc import Sequence

import numpy as np

from lorgnette.metrics.score import Tally, tally_mean

Box = tuple[float, float, float, float]

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\({_NUMBER},{_NUMBER}\)\s*,\s*\({_NUMBER},{_NUMBER}\)|\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_NO_BOX = "no reference holds a box"


def parse_boxes(text: str) -> list[Box]:
    """The boxes named in a text, as (left, top, right, bottom)."""
    found = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups() if number is not None)
        found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def iou(a: Box, b: Box) -> float:
    """Area that both cover over area that either covers; two equal boxes without area are 1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    either = _area(a) + _area(b) - both
    return both / either if either else float(a == b)


def box_iou(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Per example: IoU of the pairs of boxes, summed, over how many boxes the side with more has. The mean over
    examples, of several references the best. Where a reference has no box, none is the right answer."""
    return _score_examples(hypotheses, references, min_iou=0.0)


def box_accuracy(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """The same with every pair counting 1 at an IoU of 0.5 or more, and 0 below."""
    return _score_examples(hypotheses, references, min_iou=0.5)


def _score_examples(hypotheses: Sequence[str], references: Sequence[Sequence[str]], min_iou: float) -> Tally:
    wanted = [[parse_boxes(text) for text in texts] for texts in references]
    values = [
        max(_match_boxes(parse_boxes(own), known, min_iou) for known in texts)
        for own, texts in zip(hypotheses, wanted, strict=True)
    ]
    absent = not any(known for texts in wanted for known in texts)
    return tally_mean(np.array(values, np.float64), _NO_BOX if absent else None, is_undefined=absent)


def _match_boxes(predictions: list[Box], references: list[Box], min_iou: float) -> float:
    """Pairs are taken from the largest IoU down, every box once."""
    if not predictions or not references:
        return float(predictions == references)
    overlaps = sorted(
        ((iou(a, b), i, j) for i, a in enumerate(predictions) for j, b in enumerate(references)), reverse=True
    )
    taken: set[int] = set()
    met: set[int] = set()
    total = 0.0
    for overlap, i, j in overlaps:
        if i not in taken and j not in met and overlap >= min_iou:
            taken.add(i)
            met.add(j)
            total += 1.0 if min_iou else overlap
    return total / max(len(predictions), len(references))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
