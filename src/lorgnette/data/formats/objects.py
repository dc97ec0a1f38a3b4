"""ms-swift's `objects` ↔ boxes in texts: `<bbox>` and `<ref-object>` stand for the next box and the next name.

    {"messages": [{"role": "user", "content": "<image>Find the <ref-object>."},
                  {"role": "assistant", "content": "<ref-object><bbox>"}],
     "images": ["cat.jpg"], "objects": {"ref": ["cat", "a black cat"], "bbox": [[12.5, 34, 56, 78]]}}

bbox: [left, top, right, bottom], or [x, y] of a point. bbox_type: "real" (default), pixels of the image file as people
see it, after EXIF orientation; "norm1" or "norm1000", shares or thousandths of its width and height. image_id: the
number of each box's image, from 0; 0 if it is left out. A name right before a box is its label, and so is the label of
`{"bbox_2d": <bbox>, "label": "<ref-object>"}`. Without `objects` both placeholders are text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

from lorgnette.data import fields
from lorgnette.data.box_notation import drop_list_separators, is_list_of_numbers
from lorgnette.data.boxes import is_below_pixel
from lorgnette.data.conversation import merge_parts
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_json
from lorgnette.types import Box, BoxSource, Example, Image, Turn, TurnPart

BOX_PLACEHOLDER, NAME_PLACEHOLDER = "<bbox>", "<ref-object>"
T = TypeVar("T")
_KEYS = ("ref", "bbox", "bbox_type", "image_id")
_DIVISORS = {"real": None, "norm1": 1, "norm1000": 1000}
_UNITS = {"norm1": "shares of width and height, 0 to 1", "norm1000": "thousandths of width and height, 0 to 1000"}
_LABEL = r'"label"\s*:\s*"((?:[^"\\]|\\.)*)"'
_PLACEHOLDER = re.compile(
    rf'\{{\s*(?:{_LABEL}\s*,\s*)?"(?:bbox_2d|point_2d)"\s*:\s*<bbox>\s*(?:,\s*{_LABEL}\s*)?\}}'
    r"|(?P<name><ref-object>)(?P<named><bbox>)?|<bbox>",
    re.DOTALL,
)


class Objects:
    """The boxes and names of one row, handed out in order."""

    def __init__(self, value: object, num_images: int) -> None:
        """num_images: of the row. Raises LorgnetteError for objects that cannot be read."""
        value = parse_json(value) if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            hint = f"write it as an object with {', '.join(map(repr, _KEYS))}"
            raise LorgnetteError(f"'objects' is {describe_type(value)}, not an object", hint=hint)
        others = [key for key in value if key not in _KEYS and fields.has_content(value[key])]
        if others:
            hint = f"remove it, or use {', '.join(map(repr, _KEYS))}"
            raise LorgnetteError(f"'objects' has {others[0]!r}, which is not read", hint=hint)
        names = _require_list(value, "ref")
        self._names = [fields.require_string(name, f"name {i} of 'ref'").strip() for i, name in enumerate(names, 1)]
        if "" in self._names:
            raise LorgnetteError(f"name {self._names.index('') + 1} of 'ref' is empty", hint="write it, or remove it")
        self._boxes = list(_read_boxes(value, num_images))
        self._num_names, self._num_boxes = len(self._names), len(self._boxes)

    def fill(self, text: str) -> list[TurnPart]:
        """The text with boxes in the places of the placeholders."""
        parts: list[TurnPart] = []
        end = 0
        for match in _PLACEHOLDER.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            if match["name"]:
                name = self._next_name()
                parts.append(self._next_box(name) if match["named"] else Box((), name))
            else:
                label = next((group for group in (match[1], match[2]) if group is not None), "")
                parts.append(self._next_box(self._read_label(label)))
        return [*parts, text[end:]]

    def check_all_used(self) -> None:
        """Raise LorgnetteError unless every box and name had its placeholder."""
        for kind, rest, count, placeholder in (
            ("bbox", self._boxes, self._num_boxes, BOX_PLACEHOLDER),
            ("ref", self._names, self._num_names, NAME_PLACEHOLDER),
        ):
            if rest:
                message = f"{count - len(rest)} × {placeholder} in the texts, but {count} in objects' {kind!r}"
                raise LorgnetteError(message, hint=f"write one {placeholder} for each, where it belongs")

    def _read_label(self, written: str) -> str:
        label = fields.require_string(parse_json(f'"{written}"') if written else "", "a label")
        return re.sub(NAME_PLACEHOLDER, lambda match: self._next_name(), label).strip()

    def _next_name(self) -> str:
        return _take(self._names, self._num_names, "ref", NAME_PLACEHOLDER)

    def _next_box(self, label: str) -> Box:
        return replace(_take(self._boxes, self._num_boxes, "bbox", BOX_PLACEHOLDER), label=label)


def _take(rest: list[T], count: int, kind: str, placeholder: str) -> T:
    if not rest:
        message = f"the texts have more {placeholder} than objects' {kind!r} has entries ({count})"
        raise LorgnetteError(message, hint=f"write one {placeholder} for each, where it belongs")
    return rest.pop(0)


def _require_list(value: Mapping[str, Any], key: str) -> Sequence[Any]:
    items = [] if value.get(key) is None else value[key]
    if not isinstance(items, list):
        raise LorgnetteError(f"objects' {key!r} is {describe_type(items)}, not a list", hint="write it as a list")
    return items


def _read_boxes(value: Mapping[str, Any], num_images: int) -> Iterator[Box]:
    kind = value.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in _DIVISORS:
        hint = f"write one of {', '.join(map(repr, _DIVISORS))}"
        raise LorgnetteError(f"objects' 'bbox_type' is {kind!r}", hint=hint)
    images, boxes, divisor = _require_list(value, "image_id"), _require_list(value, "bbox"), _DIVISORS[kind]
    if len(images) > len(boxes):
        message = f"objects' 'image_id' has {len(images)} entries, and 'bbox' {len(boxes)}"
        raise LorgnetteError(message, hint="write one for each box; 0 if it is left out")
    for number, corners in enumerate(boxes, start=1):
        if not is_list_of_numbers(corners, 4) and not is_list_of_numbers(corners, 2):
            message = f"box {number} of 'bbox' is not a list of four numbers, or of two for a point"
            unit = _UNITS.get(kind, "pixels of the image file")
            raise LorgnetteError(message, hint=f"write it as [left, top, right, bottom], in {unit}")
    if kind == "real":
        _check_pixels(boxes)
    for number, corners in enumerate(boxes, start=1):
        image = images[number - 1] if number <= len(images) else 0
        if type(image) is not int or not 0 <= image < num_images:
            message = f"box {number} of 'bbox' is in image {image!r}, but the row has {num_images} (counted from 0)"
            raise LorgnetteError(message, hint="correct 'image_id'")
        if divisor is None:
            yield Box(tuple(map(float, corners)), image=image)
        else:
            source = BoxSource(numbers=tuple(map(float, corners)), unit=_UNITS[kind])
            sides = tuple(float(corner) / divisor for corner in corners)
            yield Box(sides, image=image, unit="sides", source=source)


def _check_pixels(boxes: Sequence[Sequence[float]]) -> None:
    """Raise LorgnetteError for boxes that are too small for pixels."""
    hint = 'write "bbox_type": "norm1" in \'objects\', if the numbers are shares of width and height'
    if boxes and all(0 <= value <= 1 for box in boxes for value in box):
        raise LorgnetteError("all numbers of 'bbox' are between 0 and 1: these are no pixels", hint=hint)
    for number, corners in enumerate(boxes, start=1):
        if is_below_pixel(corners):
            raise LorgnetteError(f"box {number} of 'bbox' is smaller than a pixel", hint=f"{hint}, or remove it")


def fill_turns(turns: Sequence[Turn], value: object) -> tuple[Turn, ...]:
    """The turns of a row with the boxes of its `objects` in the places of the placeholders."""
    objects = Objects(value, sum(isinstance(part, Image) for turn in turns for part in turn.parts))
    filled = []
    for turn in turns:
        new_parts = (objects.fill(part) if isinstance(part, str) else [part] for part in turn.parts)
        parts, is_json = merge_parts(chain.from_iterable(new_parts)), '_2d"' in turn.text
        filled.append(replace(turn, parts=drop_list_separators(parts) if is_json else parts))
    objects.check_all_used()
    return tuple(filled)


def to_placeholders(parts: Sequence[TurnPart], has_objects: bool) -> list[str | Image]:
    """The parts with placeholders for boxes. has_objects: whether the row has any.

    Raises LorgnetteError for a text that has a placeholder itself.
    """
    result: list[str | Image] = []
    for part in parts:
        if isinstance(part, Box):
            name = NAME_PLACEHOLDER if part.label else ""
            result.append(name + (BOX_PLACEHOLDER if part.corners else ""))
            continue
        own = isinstance(part, str) and next((p for p in (BOX_PLACEHOLDER, NAME_PLACEHOLDER) if p in part), None)
        if own and has_objects:
            hint = "remove it, or train on the source itself"
            raise LorgnetteError(f"a text contains {own}, which is a placeholder in this format", hint=hint)
        result.append(part)
    return result


def require_no_boxes(example: Example, format_name: str) -> None:
    """Raise LorgnetteError for an example with boxes, which the format's other readers do not know."""
    if any(isinstance(part, Box) for turn in example.turns for part in turn.parts):
        raise LorgnetteError(f"{format_name} has no boxes", hint="write them as swift, or as json")


def to_objects(example: Example) -> dict[str, Any]:
    """The record's `objects`; {} without boxes and names."""
    own = [part for turn in example.turns for part in turn.parts if isinstance(part, Box)]
    boxes = [box for box in own if box.corners]
    if not own:
        return {}
    if len({box.unit for box in boxes}) > 1:
        message = "some boxes are in pixels, and others in shares of the image"
        raise LorgnetteError(message, hint="write all in pixels of the image file")
    return {
        "objects": {
            "ref": [box.label for box in own if box.label],
            "bbox": [list(box.corners) for box in boxes],
            **({"bbox_type": "norm1"} if any(box.unit == "sides" for box in boxes) else {}),
            **({"image_id": [box.image for box in boxes]} if any(box.image for box in boxes) else {}),
        }
    }
