"""Finds boxes in texts: between the control tokens of Qwen2-VL, or in the JSON of Qwen2.5-VL and Qwen3-VL.

    <|object_ref_start|>a cat<|object_ref_end|><|box_start|>(12,34),(56,78)<|box_end|>
    {"bbox_2d": [12, 34, 56, 78], "label": "a cat"}     {"point_2d": [12, 34]}

An answer of boxes only may be a JSON list of such objects. `find_boxes` gives the numbers as written;
`split_text_boxes` is told what they count.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lorgnette.data.conversation import merge_parts
from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_json
from lorgnette.types import Box, BoxSource, Example, TurnPart

TextBoxUnit = Literal["pixels", "thousandths"]
"""What the numbers of boxes in texts count: pixels of the image file, or thousandths of its width and height."""
JSON_KEYS = {4: "bbox_2d", 2: "point_2d"}
"""By the number of coordinates."""
_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_POINT = rf"\[{_NUMBER},{_NUMBER}\]"
_NAME = r"<\|object_ref_start\|>(?P<{}>(?:(?!<\|object_ref_).)*)<\|object_ref_end\|>"
_MARKED = (
    rf"(?:{_NAME.format('label')}\s*)?<\|box_start\|>(?P<marked>\s*{_PAIR}(?:(?:\s*,)?\s*{_PAIR})?\s*)<\|box_end\|>"
    f"|{_NAME.format('name')}"
)
_OBJECT = r'(?P<object>\{(?:[^{}"\\]++|"(?:[^"\\]++|\\.)*+")*+\})'
_NOTATION = re.compile(f"{_MARKED}|{_OBJECT}", re.DOTALL)
_WITH_BARE = re.compile(rf"{_MARKED}|{_OBJECT}|(?P<bare>{_PAIR}\s*,\s*{_PAIR}|{_LIST}|\A{_POINT}\Z)", re.DOTALL)
_LIST_TEXT = re.compile(r"\s*(?:```(?:json)?\s*)?\[\s*\0(?:\s*,\s*\0)*\s*\]\s*(?:```\s*)?")
"""The texts before, between and behind the boxes of a JSON list, each box as \\0."""
_FIGURE = re.compile(r"-?\d+(?:\.\d+)?")


class TextBox(NamedTuple):
    """A box that was found in text[start:end]."""

    box: Box
    start: int
    end: int


def find_boxes(text: str, *, with_bare: bool = False) -> Iterator[TextBox]:
    """The boxes, points and names in a text, in order.

    with_bare: also `(x1,y1),(x2,y2)` and `[x1, y1, x2, y2]` alone, and a point `[x, y]` that is the whole text.
    """
    if not with_bare and "{" not in text and "<|" not in text:  # of a million captions no search is needed
        return
    for match in (_WITH_BARE if with_bare else _NOTATION).finditer(text):
        if match["object"] is not None:
            corners, label = _read_object(match["object"])
        else:
            coordinates = match["marked"] or match.groupdict().get("bare") or ""
            corners, label = tuple(map(float, _FIGURE.findall(coordinates))), match["label"] or match["name"] or ""
        if corners or (label.strip() and match["object"] is None):
            yield TextBox(Box(corners, label.strip()), *match.span())


def split_text_boxes(example: Example, unit: TextBoxUnit) -> Example:
    """The example with the boxes in its texts as parts of their own. unit: what their numbers count.

    Raises LorgnetteError for a box in a row without an image, or with several: a text does not say in which it is.
    """
    turns = tuple(replace(turn, parts=_split_parts(turn.parts, unit)) for turn in example.turns)
    if turns == example.turns:
        return example
    example = replace(example, turns=turns)
    if example.boxes and len(example.images) != 1:
        message = f"a text has a box, and the row has {len(example.images) or 'no'} images"
        hint = "give its boxes under 'objects', with 'image_id' (docs/guides/boxes.md)"
        raise LorgnetteError(message, hint=hint)
    return example


def _split_parts(parts: Sequence[TurnPart], unit: TextBoxUnit) -> tuple[TurnPart, ...]:
    result: list[TurnPart] = []
    has_json = False
    for part in parts:
        if not isinstance(part, str):
            result.append(part)
            continue
        end = 0
        for box, start, stop in find_boxes(part):
            result += [part[end:start], _convert_text_box(box, unit) if box.corners else box]  # a name has no unit
            has_json, end = has_json or part[start] == "{", stop
        result.append(part[end:])
    return drop_list_separators(merge_parts(result)) if has_json else merge_parts(result)


def _convert_text_box(box: Box, unit: TextBoxUnit) -> Box:
    own = BoxSource().unit if unit == "pixels" else "thousandths of width and height, 0 to 1000"
    other = "pixels" if unit == "thousandths" else "thousandths"
    if unit == "thousandths" or max(box.corners) <= 1000:
        own = f"{own} (or choose --text-boxes {other}, if it counts these)"
    box = replace(box, source=BoxSource(numbers=box.corners, unit=own))
    if unit == "pixels":
        return box
    return replace(box, corners=tuple(value / 1000 for value in box.corners), unit="sides")


def drop_list_separators(parts: tuple[TurnPart, ...]) -> tuple[TurnPart, ...]:
    """The boxes alone, if the parts are a JSON list of boxes and nothing else."""
    boxes, texts = parts[1::2], [part for part in parts[::2] if isinstance(part, str)]
    are_boxes = all(isinstance(box, Box) and box.corners for box in boxes)
    is_list = len(texts) == len(boxes) + 1 and are_boxes and _LIST_TEXT.fullmatch("\0".join(texts))
    return boxes if is_list else parts


def _read_object(text: str) -> tuple[tuple[float, ...], str]:
    """(corners, label) of a JSON object; () if it is no box."""
    if not any(key in text for key in JSON_KEYS.values()):  # LaTeX is full of braces, and errors are slow
        return (), ""
    try:
        value = parse_json(text)
    except LorgnetteError:
        return (), ""
    for count, key in JSON_KEYS.items():
        if is_list_of_numbers(corners := value.get(key), count):
            label = "" if value.get("label") is None else value["label"]
            label = label if isinstance(label, str) else json.dumps(label)
            return tuple(map(float, corners)), label.encode(errors="replace").decode()  # no half characters
    return (), ""


def is_list_of_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) in (int, float) and abs(number) < 1e9 for number in value)  # false for NaN
    )
