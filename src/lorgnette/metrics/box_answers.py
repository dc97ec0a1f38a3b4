"""The boxes of answers and references in one scale: pixels of the image file where both are known, else as written."""

from collections.abc import Iterable, Sequence

from lorgnette.data.box_notation import find_boxes
from lorgnette.data.boxes import sort_corners
from lorgnette.types import PixelBox, PredictionRow

Boxes = tuple[PixelBox, ...]
KnownBoxes = tuple[Boxes, Sequence[Boxes]]
"""Of an example: the boxes of its answer and of each reference, in pixels; () where they are not known."""


def list_known_boxes(rows: Iterable[PredictionRow]) -> tuple[list[KnownBoxes], list[KnownBoxes]]:
    """The boxes of the answers before and after training, each with those of the references."""
    pairs = [((row.base_boxes, row.reference_boxes), (row.tuned_boxes, row.reference_boxes)) for row in rows]
    return [before for before, _ in pairs], [after for _, after in pairs]


def list_boxes(text: str) -> Boxes:
    """The boxes in a text, in any notation, with the numbers that it has."""
    found = (each.box for each in find_boxes(text, with_bare=True))
    return tuple(PixelBox(sort_corners(box.corners), box.label) for box in found if len(box.corners) == 4)


def pair_boxes(answer: str, references: Sequence[str], known: KnownBoxes) -> tuple[Boxes, list[Boxes], bool]:
    """The boxes of an answer and of each of its references in one scale, and whether that is pixels of the file.

    Points are left out.
    """
    own, others = _select_boxes(known[0]), [_select_boxes(boxes) for boxes in known[1]]
    written, written_others = list_boxes(answer), [list_boxes(text) for text in references]
    if any(others) and (own or not written):
        return own, others, True
    if len(own) == len(written):
        written = tuple(PixelBox(a.corners, a.label, score=b.score) for a, b in zip(written, own, strict=True))
    for i, boxes in enumerate(others):
        if len(boxes) == len(written_others[i]):  # a text without control tokens has no labels
            pairs = zip(written_others[i], boxes, strict=True)
            written_others[i] = tuple(PixelBox(a.corners, a.label or b.label) for a, b in pairs)
    return written, written_others, False


def _select_boxes(boxes: Boxes) -> Boxes:
    return tuple(box for box in boxes if len(box.corners) == 4)
