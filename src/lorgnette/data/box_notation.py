"""Finds boxes in texts: between the control tokens of Qwen2-VL, or in the JSON of Qwen2.5-VL and Qwen3-VL.

    <|object_ref_start|>a cat<|object_ref_end|><|box_start|>(12,34),(56,78)<|box_end|>
    {"bbox_2d": [12, 34, 56, 78], "label": "a cat"}     {"point_2d": [12, 34]}

Numbers are as written: nothing here knows what they count.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_json
from lorgnette.types import Box

JSON_KEYS = {4: "bbox_2d", 2: "point_2d"}
"""By the number of coordinates."""
_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,9})?)\s*"
_PAIR = rf"\({_NUMBER},{_NUMBER}\)"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_MARKED = (
    r"(?:<\|object_ref_start\|>(?P<label>(?:(?!<\|object_ref_).)*)<\|object_ref_end\|>\s*)?"
    rf"<\|box_start\|>(?P<marked>\s*{_PAIR}(?:\s*,?\s*{_PAIR})?\s*)<\|box_end\|>"
)
_OBJECT = r'(?P<object>\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\})'
_NOTATION = re.compile(f"{_MARKED}|{_OBJECT}", re.DOTALL)
_WITH_BARE = re.compile(rf"{_MARKED}|{_OBJECT}|(?P<bare>{_PAIR}\s*,\s*{_PAIR}|{_LIST})", re.DOTALL)
_FIGURE = re.compile(r"-?\d+(?:\.\d+)?")


class TextBox(NamedTuple):
    """A box that was found in text[start:end]."""

    box: Box
    start: int
    end: int


def find_boxes(text: str, *, with_bare: bool = False) -> Iterator[TextBox]:
    """The boxes and points in a text, in order.

    with_bare: also boxes in `(x1,y1),(x2,y2)` and `[x1, y1, x2, y2]` alone.
    """
    for match in (_WITH_BARE if with_bare else _NOTATION).finditer(text):
        if match["object"] is not None:
            corners, label = _read_object(match["object"])
        else:
            coordinates = match["marked"] or match.groupdict().get("bare") or ""
            corners, label = tuple(map(float, _FIGURE.findall(coordinates))), match["label"] or ""
        if corners:
            yield TextBox(Box(corners, label.strip()), *match.span())


def _read_object(text: str) -> tuple[tuple[float, ...], str]:
    """(corners, label) of a JSON object; () if it is no box."""
    try:
        value = parse_json(text)
    except LorgnetteError:
        return (), ""
    for count, key in JSON_KEYS.items():
        if is_list_of_numbers(corners := value.get(key), count):
            label = value.get("label", "")
            return tuple(map(float, corners)), label if isinstance(label, str) else json.dumps(label)
    return (), ""


def is_list_of_numbers(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(number) in (int, float) and math.isfinite(number) and abs(number) < 1e9 for number in value)
    )
