"""The tutorial's JSON ↔ Example: turns under "conversations", an image's path between two markers in the text.

    {"id": "identity_1", "conversations": [
        {"from": "user", "value": "COCO Yes: <|vision_start|>PATH<|vision_end|>"},
        {"from": "assistant", "value": "a cat asleep"}]}

The markers have a meaning in the user's turns only; elsewhere they are text. Knows nothing about files of records.

Order: a turn with exactly one image becomes the image, then the remaining text joined and stripped, as the tutorial's
training script does it. With several images, texts and images keep their order, and texts stay as written.

Boxes are not the tutorial's: a row may have ms-swift's `objects` (formats/objects.py).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lorgnette.data import fields
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.data.formats import objects
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Role, Turn, TurnPart

START, END = "<|vision_start|>", "<|vision_end|>"
ROLES: dict[str, Role]
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_MARKER = re.compile(f"({re.escape(START)}|{re.escape(END)})")
_HINT = "train on the source itself instead, which keeps it as it is"


class Item(NamedTuple):
    """One turn as the record has it. unread_keys: as `Example.unread_keys`."""

    role: Role
    text: str
    has_loss: bool
    unread_keys: tuple[str, ...]


def read_record(record: Mapping[str, Any], location: RowLocation) -> Example:
    """The record's example. Relative paths start at the file's folder, or else at the current one."""
    unread_keys = fields.check_row_keys(record, ("id", "conversations", "objects"))
    items = read_items(record)
    turns = []
    for number, item in enumerate(items, start=1):
        parts = _parse_user_text(item.text, number, location) if item.role == "user" else merge_parts([item.text])
        turns.append(Turn(item.role, parts, item.has_loss))
    if fields.has_content(record.get("objects")):
        turns = list(objects.fill_turns(turns, record["objects"]))
    check_conversation(turns, needs_answer=False)
    unread_keys = fields.join_keys(unread_keys, *(item.unread_keys for item in items))
    return Example(fields.read_id(record, location.id), tuple(turns), location.source, location.row, unread_keys)


def read_items(record: Mapping[str, Any]) -> list[Item]:
    """The record's "conversations"."""
    items = []
    for number, item in enumerate(fields.require_objects(record.get("conversations"), "conversations"), start=1):
        name, owner = item.get("from"), f"turn {number}"
        if not isinstance(name, str) or name not in ROLES:
            raise LorgnetteError(f"{owner} is from {name!r}, not one of {', '.join(ROLES)}", hint="correct 'from'")
        text = fields.require_string(item.get("value"), f"{owner}'s 'value'")
        has_loss = fields.read_loss_mark(item, ROLES[name], owner)
        read_keys = ("from", "value", *fields.TURN_MARKS)
        unread_keys = fields.list_unread_keys(item, read_keys, owner=owner, prefix="conversations[].")
        items.append(Item(ROLES[name], text, has_loss, unread_keys))
    return items


def has_markers(record: Mapping[str, Any]) -> bool:
    """True if a text of the record has an image's marker."""
    items = record.get("conversations")
    values = [item.get("value") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return any(isinstance(value, str) and _MARKER.search(value) for value in values)


def to_record(example: Example) -> dict[str, Any]:
    """The record as the tutorial writes it, with absolute paths. Spaces around a single image's text are not kept."""
    own_objects = objects.to_objects(example)
    items = [{"from": turn.role, "value": _format_turn(turn, bool(own_objects))} for turn in example.turns]
    return {"id": example.id, "conversations": items, **own_objects}


def trim_turns(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns as this format keeps them: a single image comes first, its text loses the spaces around it."""
    return tuple(replace(turn, parts=_put_image_first(turn.parts)) for turn in turns)


def _parse_user_text(text: str, number: int, location: RowLocation) -> tuple[TurnPart, ...]:
    pieces = _MARKER.split(text)  # text, START, path, END, text, …
    markers = pieces[1::2]
    if markers != [START, END] * (len(markers) // 2):
        first_wrong = next((i for i, marker in enumerate(markers) if marker != (START, END)[i % 2]), len(markers))
        alone, missing = (START, END) if first_wrong % 2 else (END, START)
        message = f"turn {number}: {alone} without its {missing}"
        raise LorgnetteError(message, hint=f"write each image as {START}PATH{END}")
    parts: list[TurnPart] = list(pieces[::2])
    for i in range(1, len(parts), 2):
        parts[i] = location.resolve_image(pieces[2 * i], f"turn {number}", fallback_folder=Path.cwd())
    return _put_image_first(merge_parts(parts))


def _put_image_first(parts: tuple[TurnPart, ...]) -> tuple[TurnPart, ...]:
    """A single image, then the text joined and stripped; any other turn as it is."""
    images = [part for part in parts if isinstance(part, Image)]
    if len(images) != 1:
        return parts
    texts = list(merge_parts(part for part in parts if not isinstance(part, Image)))
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        if texts and isinstance(text := texts[end], str):
            texts[end] = strip(text)
    return merge_parts([images[0], *texts])


def _format_turn(turn: Turn, has_objects: bool) -> str:
    parts = objects.to_placeholders(turn.parts, has_objects=has_objects)
    text = "".join(part for part in parts if isinstance(part, str))
    if turn.role != "user":
        return text
    for part in parts:
        if _MARKER.search(part if isinstance(part, str) else str(part.path)):
            raise LorgnetteError(f"the user's own text contains {START} or {END}", hint=_HINT)
    images = [part for part in parts if isinstance(part, Image)]
    if len(images) != 1:
        return "".join(part if isinstance(part, str) else _mark_image(part) for part in parts)
    if "".join(part for part in parts[: parts.index(images[0])] if isinstance(part, str)).strip():
        raise LorgnetteError("text comes before a single image, which this format puts first", hint=_HINT)
    return f"{text.strip()} {_mark_image(images[0])}".lstrip()  # as the tutorial writes it


def _mark_image(image: Image) -> str:
    return f"{START}{os.path.abspath(image.path)}{END}"
