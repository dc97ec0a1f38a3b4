"""The tutorial's JSON ↔ Example: turns under "conversations", a picture's path between two markers in the text.

    {"id": "identity_1", "conversations": [
        {"from": "user", "value": "COCO Yes: <|vision_start|>PATH<|vision_end|>"},
        {"from": "assistant", "value": "a cat asleep"}]}

Knows nothing about files of records. The markers mean something in the user's turns only; elsewhere they are text.

Order: a turn with exactly one picture is the picture, then the remaining text joined and stripped, as the tutorial's
training script feeds it. With several pictures, texts and pictures stay where they stand, and texts stay as written.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Role, Turn

START, END = "<|vision_start|>", "<|vision_end|>"
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_MARKER = re.compile(f"({re.escape(START)}|{re.escape(END)})")
_UNREAD_KEYS = ("image", "images", "video", "videos", "audio", "audios", "system", "tools", "rejected")


def read_record(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """One record read. Relative paths start at the file's folder, or else at the current one."""
    row_location.reject_unread_keys(record, ("id", "conversations"), _UNREAD_KEYS)
    said = row_location.require_objects(record.get("conversations"), "conversations")
    turns = tuple(_read_turn(item, number, location) for number, item in enumerate(said, start=1))
    check_conversation(turns)
    return Example(row_location.read_id(record, location), turns, location.source, location.row)


def to_record(example: Example) -> dict[str, Any]:
    """The record as the tutorial writes it, with absolute paths. Blanks around a lone picture's text are not kept."""
    said = [{"from": turn.role, "value": _format_turn(turn)} for turn in example.turns]
    return {"id": example.id, "conversations": said}


def trim_turns(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """What this form keeps of the turns: a lone picture stands first, the blanks around its text are gone."""
    return tuple(Turn(turn.role, _put_image_first(turn.parts)) for turn in turns)


_HINT = "train on the source itself instead, which keeps it as it is"


def _read_turn(item: Mapping[str, Any], number: int, location: row_location.RowLocation) -> Turn:
    role, value = read_role(item, number), row_location.require_string(item.get("value"), f"turn {number}'s 'value'")
    return Turn(role, _parse_user_text(value, number, location) if role == "user" else merge_parts([value]))


def read_role(item: Mapping[str, Any], number: int) -> Role:
    speaker = item.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise LorgnetteError(
            f"turn {number} is from {speaker!r}, not one of {', '.join(ROLES)}", hint="correct the turn's 'from'"
        )
    return ROLES[speaker]


def _parse_user_text(value: str, number: int, location: row_location.RowLocation) -> tuple[str | Image, ...]:
    parts: list[str | Image] = []
    inside = False
    for piece in _MARKER.split(value):
        if piece in (START, END):
            if inside is (piece == START):
                raise LorgnetteError(
                    f"turn {number}: {piece} without its {END if inside else START}",
                    hint=f"write each picture as {START}PATH{END}",
                )
            inside = not inside
        else:
            parts.append(
                location.resolve_image(piece, f"turn {number}", fallback_folder=Path.cwd()) if inside else piece
            )
    if inside:
        raise LorgnetteError(f"turn {number}: {START} without its {END}", hint=f"close it with {END}")
    kept = merge_parts(parts)
    pictures = [part for part in kept if isinstance(part, Image)]
    return _put_image_first(kept) if len(pictures) == 1 else kept


def _put_image_first(parts: tuple[str | Image, ...]) -> tuple[str | Image, ...]:
    """A lone picture, then the text joined and stripped; any other turn as it is."""
    pictures = [part for part in parts if isinstance(part, Image)]
    if len(pictures) != 1:
        return parts
    text = "".join(part for part in parts if isinstance(part, str)).strip()
    return merge_parts([pictures[0], text])


def _format_turn(turn: Turn) -> str:
    if turn.role != "user":
        return turn.text
    for part in turn.parts:
        if _MARKER.search(part if isinstance(part, str) else str(part.path)):
            raise LorgnetteError(f"the user's own text holds {START} or {END}", hint=_HINT)
    parts = merge_parts(turn.parts)
    pictures = [part for part in parts if isinstance(part, Image)]
    if len(pictures) != 1:
        return "".join(part if isinstance(part, str) else _mark_image(part) for part in parts)
    if not isinstance(parts[0], Image) and str(parts[0]).strip():
        raise LorgnetteError("text stands before a lone picture, which this form puts first", hint=_HINT)
    return f"{turn.text.strip()} {_mark_image(pictures[0])}".lstrip()  # the tutorial's own way to write it


def _mark_image(image: Image) -> str:
    return f"{START}{os.path.abspath(image.path)}{END}"
