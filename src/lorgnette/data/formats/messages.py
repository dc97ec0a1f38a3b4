"""Messages (role, content) with `images` ↔ Example: the format of TRL, ms-swift, LLaMA-Factory and the chat APIs.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat.jpg"]}

Content is a text, in which the user's `<image>` stands for the next of `images`; or a list of {"type": "text", "text"},
{"type": "image"} and OpenAI's {"type": "image_url"} entries, whose image is under "image", "path", "url", "image_url"
(a path or a data URI), or is the next of `images`. LLaMA-Factory's v1 rows have text and path under "value".

Boxes are ms-swift's `objects` (formats/objects.py).

A message with "loss": false, "weight": 0, "loss_weight": 0 or "train": false has no loss. Knows nothing about files of
records.
"""

from collections.abc import Mapping
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import placeholders
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Role

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_PATH_KEYS = ("image", "path", "url", "image_url", "value")
_Draft = tuple[placeholders.DraftTurn, tuple[str, ...]]
"""A turn, and the keys of its message that were not read."""


def read_record(record: Mapping[str, Any], location: RowLocation, *, alternates: bool = True) -> Example:
    """The record's example. alternates: False for a chat, where user and assistant speak in any order."""
    items = fields.require_objects(record.get("messages"), "messages")
    drafts = [_read_message(item, number, location) for number, item in enumerate(items, start=1)]
    unread_keys = fields.join_keys(*(keys for _, keys in drafts))
    turns = [turn for turn, _ in drafts]
    return placeholders.build_example(
        record, location, turns, read_keys=("messages",), unread_keys=unread_keys, alternates=alternates
    )


def _read_message(item: Mapping[str, Any], number: int, location: RowLocation) -> _Draft:
    name, owner = item.get("role"), f"message {number}"
    if not isinstance(name, str) or name not in ROLES:
        raise LorgnetteError(f"{owner} has the role {name!r}, not one of {', '.join(ROLES)}", hint="correct it")
    role, content, where = ROLES[name], item.get("content"), f"{owner}'s content"
    read_keys = ("role", "content", *fields.TURN_MARKS)
    unread_keys = fields.list_unread_keys(item, read_keys, owner=owner, prefix="messages[].")
    has_loss = fields.read_loss_mark(item, role, owner)
    if not isinstance(content, list):
        return placeholders.split_placeholders(role, fields.require_string(content, where), has_loss), unread_keys
    parts: list[placeholders.Part] = []
    for entry in fields.require_objects(content, where):
        part, more = _read_entry(entry, where, location)
        parts.append(part)
        unread_keys = fields.join_keys(unread_keys, more)
    return placeholders.DraftTurn(role, parts, has_loss), unread_keys


def _read_entry(
    entry: Mapping[str, Any], where: str, location: RowLocation
) -> tuple[placeholders.Part, tuple[str, ...]]:
    """A part, and the keys of the entry that were not read."""
    entry_type = entry.get("type")
    if entry_type == "text":
        keys = [key for key in ("text", "value") if entry.get(key) is not None]
        _require_one(keys, f"a text in {where}")
        text = fields.require_string(entry.get(keys[0] if keys else "text"), f"a text in {where}")
        return text, _list_unread_keys(entry, ("type", "text", *keys), where)
    if entry_type not in ("image", "image_url"):
        message = f"{where} has an entry of type {entry_type!r}, not 'text', 'image' or 'image_url'"
        raise LorgnetteError(message, hint="remove it, or name its type")
    keys = [key for key in _PATH_KEYS if entry.get(key) is not None]
    if not keys and entry_type == "image":
        return placeholders.NextImage, _list_unread_keys(entry, ("type", *_PATH_KEYS), where)
    if not keys:
        raise LorgnetteError(f"an image in {where} has no 'image_url'", hint="give it one path or data URI")
    _require_one(keys, f"an image in {where}")
    unread_keys, path = _list_unread_keys(entry, ("type", *keys), where), entry[keys[0]]
    if keys[0] == "image_url" and isinstance(path, dict):
        unread_keys = fields.join_keys(unread_keys, _list_unread_keys(path, ("url",), where, ".image_url"))
        path = path.get("url")
    return location.resolve_image(path, f"{keys[0]!r} in {where}"), unread_keys


def _require_one(keys: list[str], owner: str) -> None:
    if len(keys) > 1:
        raise LorgnetteError(f"{owner} has both {keys[0]!r} and {keys[1]!r}", hint="keep one")


def _list_unread_keys(
    entry: Mapping[str, Any], read_keys: tuple[str, ...], where: str, part: str = ""
) -> tuple[str, ...]:
    prefix = f"messages[].content[]{part}."
    return fields.list_unread_keys(entry, read_keys, owner=f"an entry in {where}", prefix=prefix)


def to_record(example: Example, mark: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record, as ms-swift and LLaMA-Factory read it too. mark: what a message without loss gets."""
    texts, paths, own_objects = placeholders.format_turns(example)
    messages = [
        {"role": role, "content": text, **({} if turn.has_loss else mark or {})}
        for (role, text), turn in zip(texts, example.turns, strict=True)
    ]
    return {"id": example.id, "messages": messages, **({"images": paths} if paths else {}), **own_objects}
