"""The boxes of an answer in pixels of the image file, each with the mean probability of its tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from lorgnette.data.box_notation import TextBox, find_boxes
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, PixelBox

_CORNER_DIGITS, _SCORE_DIGITS = 2, 6
"""Kept of a coordinate: a hundredth of a pixel; and of a score."""


def read_answer_boxes(
    processor: Processor,
    example: Example,
    text: str,
    answer_ids: Sequence[int],
    probabilities: Sequence[float] | None,
) -> tuple[PixelBox, ...]:
    """The boxes and points in an answer.

    probabilities: of its tokens. If they are None, no boxes are expected: boxes in brackets alone are then numbers
    like others. Without boxes, and if it is unknown which of several images they are in, the result is empty.
    """
    number = _find_image(processor, example)
    if number is None or not any(box.corners for box, *_ in find_boxes(text, with_bare=probabilities is not None)):
        return ()
    found = [each for each in processor.parse_boxes(text, example.images[number], number) if each.box.corners]
    scores: Sequence[float | None] = [None] * len(found)
    if probabilities is not None:
        scores = score_boxes(processor.tokenizer.decode_each(answer_ids), probabilities, found)
    return tuple(
        PixelBox(tuple(round(corner, _CORNER_DIGITS) for corner in box.corners), box.label, number, score)
        for (box, _, _), score in zip(found, scores, strict=True)
    )


def locate_references(prompts: Iterable[EvalPrompt], processor: Processor) -> list[EvalPrompt]:
    """The prompts with the boxes in the texts of their references, which are written as the model writes them."""
    located = []
    for prompt in prompts:
        if not prompt.reference_boxes:
            found = tuple(read_answer_boxes(processor, prompt.example, text, (), None) for text in prompt.references)
            located.append(replace(prompt, reference_boxes=found if any(found) else ()))
        else:
            located.append(prompt)
    return located


def score_boxes(pieces: Sequence[str], probabilities: Sequence[float], found: Sequence[TextBox]) -> list[float]:
    """The mean probability of the tokens that each box has a character of. pieces: the text by token."""
    ends = np.cumsum([len(piece) for piece in pieces])
    sums = np.concatenate([[0.0], np.cumsum(probabilities[: len(pieces)], dtype=np.float64)])
    first = np.searchsorted(ends, [box.start for box in found], side="right")
    last = np.searchsorted(ends, [box.end for box in found], side="left")
    means = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return [round(mean, _SCORE_DIGITS) for mean in means.tolist()]


def _find_image(processor: Processor, example: Example) -> int | None:
    """The number of the image that an answer's boxes are in: the only one, the one that the reference's boxes are in,
    or the first of images that all have one size."""
    of_reference = {box.image for box in example.reference_boxes}
    if len(of_reference) == 1:
        return of_reference.pop()
    paths = dict.fromkeys(image.path for image in example.images)
    return 0 if paths and (len(paths) == 1 or len({processor.read_size(path) for path in paths}) == 1) else None
