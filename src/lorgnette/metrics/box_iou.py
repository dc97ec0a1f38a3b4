"""Boxes in answers: intersection over union, and the share of boxes that are right at 0.5.

Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010, §4.2 (IoU, one prediction to one box, the
threshold 0.5); "accuracy at 0.5" is what RefCOCO is reported in. Two written forms are read, with any text around:
`(x1,y1),(x2,y2)` of Qwen-VL and Qwen2-VL, and `[x1,y1,x2,y2]` of Qwen2.5-VL's JSON. Coordinates are compared as they
are written: hypothesis and reference must use one scale.
"""

import re
from collections.abc import Sequence

import numpy as np

from lorgnette.metrics.score import Tally, mean

Box = tuple[float, float, float, float]

_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"\({_N},{_N}\)\s*,\s*\({_N},{_N}\)|\[{_N},{_N},{_N},{_N}\]")
_NO_BOX = "no reference holds a box"


def boxes(text: str) -> list[Box]:
    """The boxes named in a text, as (left, top, right, bottom)."""
    found = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups() if number is not None)
        found.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    return found


def iou(one: Box, other: Box) -> float:
    """Area that both cover over area that either covers; two equal boxes without area are 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    either = _area(one) + _area(other) - both
    return both / either if either else float(one == other)


def box_iou(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """Per example: IoU of the pairs of boxes, summed, over how many boxes the side with more has. The mean over
    examples, of several references the best. Where a reference has no box, none is the right answer."""
    return _over(hypotheses, references, least=0.0)


def box_accuracy(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    """The same with every pair counting 1 at an IoU of 0.5 or more, and 0 below."""
    return _over(hypotheses, references, least=0.5)


def _over(hypotheses: Sequence[str], references: Sequence[Sequence[str]], least: float) -> Tally:
    wanted = [[boxes(text) for text in texts] for texts in references]
    values = [
        max(_pairs(boxes(own), known, least) for known in texts) for own, texts in zip(hypotheses, wanted, strict=True)
    ]
    absent = not any(known for texts in wanted for known in texts)
    return mean(np.array(values, np.float64), _NO_BOX if absent else None, nothing=absent)


def _pairs(own: list[Box], known: list[Box], least: float) -> float:
    """Pairs are taken from the largest IoU down, every box once."""
    if not own or not known:
        return float(own == known)
    overlaps = sorted(((iou(a, b), i, j) for i, a in enumerate(own) for j, b in enumerate(known)), reverse=True)
    taken: set[int] = set()
    met: set[int] = set()
    total = 0.0
    for overlap, i, j in overlaps:
        if i not in taken and j not in met and overlap >= least:
            taken.add(i)
            met.add(j)
            total += 1.0 if least else overlap
    return total / max(len(own), len(known))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
