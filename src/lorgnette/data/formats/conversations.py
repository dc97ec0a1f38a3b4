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

from lorgnette.data import rows
from lorgnette.data.conversation import merged, must_be_learnable
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Role, Turn

START, END = "<|vision_start|>", "<|vision_end|>"
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_MARKER = re.compile(f"({re.escape(START)}|{re.escape(END)})")
_UNREAD = ("image", "images", "video", "videos", "audio", "audios", "system", "tools", "rejected")


def example(record: Mapping[str, Any], place: rows.Place) -> Example:
    """One record read. Relative paths start at the file's folder, or else at the current one."""
    rows.must_be_read(record, ("id", "conversations"), _UNREAD)
    said = rows.objects(record.get("conversations"), "conversations")
    turns = tuple(_turn(item, number, place) for number, item in enumerate(said, start=1))
    must_be_learnable(turns)
    return Example(rows.identity(record, place), turns, place.source, place.row)


def written(example_: Example) -> dict[str, Any]:
    """The record as the tutorial writes it, with absolute paths. Blanks around a lone picture's text are not kept."""
    said = [{"from": turn.role, "value": _value(turn)} for turn in example_.turns]
    return {"id": example_.id, "conversations": said}


def tidied(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """What this form keeps of the turns: a lone picture stands first, the blanks around its text are gone."""
    return tuple(Turn(turn.role, _lone_first(turn.parts)) for turn in turns)


_DIRECTLY = "train on the source itself instead, which keeps it as it is"


def _turn(item: Mapping[str, Any], number: int, place: rows.Place) -> Turn:
    role, value = said_by(item, number), rows.string(item.get("value"), f"turn {number}'s 'value'")
    return Turn(role, _user_parts(value, number, place) if role == "user" else merged([value]))


def said_by(item: Mapping[str, Any], number: int) -> Role:
    speaker = item.get("from")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise LorgnetteError(
            f"turn {number} is from {speaker!r}, not one of {', '.join(ROLES)}", remedy="correct the turn's 'from'"
        )
    return ROLES[speaker]


def _user_parts(value: str, number: int, place: rows.Place) -> tuple[str | Picture, ...]:
    parts: list[str | Picture] = []
    inside = False
    for piece in _MARKER.split(value):
        if piece in (START, END):
            if inside is (piece == START):
                raise LorgnetteError(
                    f"turn {number}: {piece} without its {END if inside else START}",
                    remedy=f"write each picture as {START}PATH{END}",
                )
            inside = not inside
        else:
            parts.append(place.picture(piece, f"turn {number}", or_folder=Path.cwd()) if inside else piece)
    if inside:
        raise LorgnetteError(f"turn {number}: {START} without its {END}", remedy=f"close it with {END}")
    kept = merged(parts)
    pictures = [part for part in kept if isinstance(part, Picture)]
    return _lone_first(kept) if len(pictures) == 1 else kept


def _lone_first(parts: tuple[str | Picture, ...]) -> tuple[str | Picture, ...]:
    """A lone picture, then the text joined and stripped; any other turn as it is."""
    pictures = [part for part in parts if isinstance(part, Picture)]
    if len(pictures) != 1:
        return parts
    text = "".join(part for part in parts if isinstance(part, str)).strip()
    return merged([pictures[0], text])


def _value(turn: Turn) -> str:
    if turn.role != "user":
        return turn.text
    for part in turn.parts:
        if _MARKER.search(part if isinstance(part, str) else str(part.path)):
            raise LorgnetteError(f"the user's own text holds {START} or {END}", remedy=_DIRECTLY)
    parts = merged(turn.parts)
    pictures = [part for part in parts if isinstance(part, Picture)]
    if len(pictures) != 1:
        return "".join(part if isinstance(part, str) else _marked(part) for part in parts)
    if not isinstance(parts[0], Picture) and str(parts[0]).strip():
        raise LorgnetteError("text stands before a lone picture, which this form puts first", remedy=_DIRECTLY)
    return f"{turn.text.strip()} {_marked(pictures[0])}".lstrip()  # the tutorial's own way to write it


def _marked(picture: Picture) -> str:
    return f"{START}{os.path.abspath(picture.path)}{END}"
