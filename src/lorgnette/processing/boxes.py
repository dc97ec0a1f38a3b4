"""Boxes in texts: pixels of the image file ↔ the numbers and the notation of a model family.

Qwen2-VL writes thousandths of width and height between control tokens (arXiv 2409.12191, §2.2.1), Qwen2.5-VL pixels of
the resized image in JSON (arXiv 2502.13923, §2.1), Qwen3-VL thousandths in JSON. Knows nothing about files, the ids of
tokens, and models.

    <|object_ref_start|>a cat<|object_ref_end|><|box_start|>(12,34),(56,78)<|box_end|>
    {"bbox_2d": [12, 34, 56, 78], "label": "a cat"}
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lorgnette.data.box_notation import JSON_KEYS, TextBox, find_boxes
from lorgnette.data.boxes import check_boxes, convert_to_pixels, sort_corners
from lorgnette.models.family import BoxFormat, BoxScale
from lorgnette.types import Box, ControlToken, Example, Image, Turn, TurnPart

REF_START, REF_END = ControlToken("<|object_ref_start|>"), ControlToken("<|object_ref_end|>")
BOX_START, BOX_END = ControlToken("<|box_start|>"), ControlToken("<|box_end|>")
_NUM_EDGES = 4
BOX_TOKENS = tuple(token.name for token in (REF_START, REF_END, BOX_START, BOX_END))


class ImageSize(NamedTuple):
    """The size of an image file, as people see it, and that of the image that the model gets, in pixels."""

    width: int
    height: int
    resized_width: int
    resized_height: int


@dataclass(frozen=True, slots=True)
class BoxConvention:
    """How a model family writes boxes.

    scale: what a number counts: thousandths of the image's width and height, or pixels of the resized image.
    format: between control tokens, or as JSON.
    """

    scale: BoxScale
    format: BoxFormat

    def to_model(self, corners: Sequence[int | float], size: ImageSize) -> tuple[int, ...]:
        """Pixels of the file → the model's whole numbers, at most half a step from the exact value.

        What lies outside the image is moved to its edge.
        """
        steps = self._count_steps(size)
        exact = (value * steps[i % 2] / size[i % 2] for i, value in enumerate(corners))
        return tuple(round(min(max(value, 0), steps[i % 2])) for i, value in enumerate(exact))

    def to_file(self, corners: Sequence[int | float], size: ImageSize) -> tuple[float, ...]:
        """The model's numbers → pixels of the file."""
        steps = self._count_steps(size)
        return tuple(value * size[i % 2] / steps[i % 2] for i, value in enumerate(corners))

    def _count_steps(self, size: ImageSize) -> tuple[int, int]:
        """The model's number at the right and at the lower edge."""
        return (1000, 1000) if self.scale == "thousandths" else (size.resized_width, size.resized_height)


def has_boxes(example: Example) -> bool:
    """Whether a text has a box, a point, or the name of an object."""
    return any(isinstance(part, Box) for turn in example.turns for part in turn.parts)


def write_boxes(example: Example, convention: BoxConvention, sizes: Sequence[ImageSize]) -> Example:
    """The example with `Box.written` and all boxes in pixels. sizes: one per image of the example.

    A turn of boxes only is a JSON list of objects. Within a text, a box with a label is an object, and one without is
    the list of its numbers. Raises LorgnetteError for a box without area or outside its image.
    """
    check_boxes(example, [size[:2] for size in sizes])
    return replace(example, turns=tuple(_write_turn(turn, convention, sizes) for turn in example.turns))


def count_flat_boxes(example: Example, convention: BoxConvention, sizes: Sequence[ImageSize]) -> int:
    """The boxes, in pixels of the file, that have no area in the model's whole numbers."""
    numbers = [convention.to_model(box.corners, sizes[box.image]) for box in example.boxes]
    return sum(len(n) == _NUM_EDGES and (n[0] == n[2] or n[1] == n[3]) for n in numbers)


def _write_turn(turn: Turn, convention: BoxConvention, sizes: Sequence[ImageSize]) -> Turn:
    is_list = bool(turn.boxes) and all(isinstance(part, Box) and part.corners for part in turn.parts)
    parts: list[TurnPart] = []
    for number, part in enumerate(turn.parts):
        if not isinstance(part, Box):
            parts.append(part)
            continue
        box = convert_to_pixels(part, sizes[part.image][:2]) if part.corners else part
        numbers = convention.to_model(box.corners, sizes[box.image]) if box.corners else ()
        if convention.format == "tokens":
            written = _write_tokens(numbers, box.label)
        elif is_list:
            before, after = "[\n" if number == 0 else "", "\n]" if number == len(turn.parts) - 1 else ",\n"
            written = (f"{before}\t{_write_object(numbers, box.label)}{after}",)
        elif numbers:
            written = (_write_object(numbers, box.label) if box.label else json.dumps(numbers),)
        else:
            written = (box.label,)
        parts.append(replace(box, written=written))
    return replace(turn, parts=tuple(parts))


def join_pieces(parts: Iterable[TurnPart]) -> tuple[str | ControlToken, ...]:
    """Texts and written boxes as one text; neighboring strings are joined, since they are tokenized together."""
    pieces: list[str | ControlToken] = []
    for part in parts:
        for piece in part.written if isinstance(part, Box) else (part,):
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif not isinstance(piece, Image):
                pieces.append(piece)
    return tuple(pieces)


def _write_tokens(numbers: Sequence[int], label: str) -> tuple[str | ControlToken, ...]:
    pairs = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    name = (REF_START, label, REF_END) if label else ()
    return (*name, BOX_START, pairs, BOX_END) if pairs else name


def _write_object(numbers: Sequence[int], label: str) -> str:
    name = {"label": label} if label else {}
    return json.dumps({JSON_KEYS[len(numbers)]: list(numbers), **name}, ensure_ascii=False)


def parse_boxes(text: str, convention: BoxConvention, size: ImageSize, image: int = 0) -> list[TextBox]:
    """The boxes and points of a model's answer, in pixels of the image file. image: the number of their image.

    Every notation is read, whatever the family: a model that was not trained on boxes may use another one.
    """
    return [
        found._replace(
            box=replace(found.box, corners=convention.to_file(sort_corners(found.box.corners), size), image=image)
        )
        for found in find_boxes(text, with_bare=True)
        if found.box.corners
    ]
