"""Messages (role, content) with `images` ↔ Example: the format of TRL, ms-swift, LLaMA-Factory and the chat APIs.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat.jpg"]}

Content is a text, in which the user's `<image>` stands for the next of `images`; or a list of {"type": "text", "text"},
{"type": "image"} and OpenAI's {"type": "image_url"} entries, whose image is under "image", "path", "url" or
"image_url" (a path or a data URI), or is the next of `images`. In such a list `<image>` is ordinary text.

Knows nothing about files of records.
"""

from collections.abc import Mapping
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import placeholders
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Role

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_PATH_KEYS = ("image", "path", "url", "image_url")


def read_record(record: Mapping[str, Any], location: RowLocation) -> Example:
    """The record's example."""
    items = fields.require_objects(record.get("messages"), "messages")
    drafts = [_read_message(item, number, location) for number, item in enumerate(items, start=1)]
    return placeholders.build_example(record, location, drafts, read_keys=("messages",))


def _read_message(item: Mapping[str, Any], number: int, location: RowLocation) -> placeholders.DraftTurn:
    name = item.get("role")
    if not isinstance(name, str) or name not in ROLES:
        message = f"message {number} has the role {name!r}, not one of {', '.join(ROLES)}"
        raise LorgnetteError(message, hint="correct it")
    fields.reject_unread_keys(item, ("role", "content"), ("tool_calls", "function_call"))
    content, role, where = item.get("content"), ROLES[name], f"message {number}'s content"
    if isinstance(content, list):
        return role, [_read_entry(entry, where, location) for entry in fields.require_objects(content, where)]
    return placeholders.split_placeholders(role, fields.require_string(content, where))


def _read_entry(entry: Mapping[str, Any], where: str, location: RowLocation) -> placeholders.Part:
    entry_type = entry.get("type")
    if entry_type == "text":
        return fields.require_string(entry.get("text"), f"a text in {where}")
    if entry_type not in ("image", "image_url"):
        message = f"{where} has an entry of type {entry_type!r}, not 'text', 'image' or 'image_url'"
        raise LorgnetteError(message, hint="remove it, or name its type")
    keys = [key for key in _PATH_KEYS if entry.get(key) is not None]
    if not keys and entry_type == "image":
        return placeholders.NextImage
    if len(keys) != 1:
        fact = f"both {keys[0]!r} and {keys[1]!r}" if keys else "no 'image_url'"
        raise LorgnetteError(f"an image in {where} has {fact}", hint="give it one path or data URI")
    path = entry[keys[0]]
    if keys[0] == "image_url" and isinstance(path, dict):
        path = path.get("url")
    return location.resolve_image(path, f"{keys[0]!r} in {where}")


def to_record(example: Example) -> dict[str, Any]:
    """The record, as ms-swift and LLaMA-Factory read it too."""
    texts, paths = placeholders.format_turns(example)
    messages = [{"role": role, "content": text} for role, text in texts]
    return {"id": example.id, "messages": messages, **({"images": paths} if paths else {})}
