"""Messages (role, content) with `images` ↔ Example: the form of TRL, ms-swift, LLaMA-Factory and the chat APIs.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat.jpg"]}

Content is text, in which the user's `<image>` stands for the next of `images`; or a list of {"type": "text", "text"},
{"type": "image"} and OpenAI's {"type": "image_url"} entries, whose picture is under "image", "path", "url" or
"image_url" (a path or a data URI), or is the next of `images`. In such a list text is text, `<image>` included.

Knows nothing about files of records.
"""

from collections.abc import Mapping
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.formats import placeholders
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Role

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_PATH_KEYS = ("image", "path", "url", "image_url")


def read_record(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """One record read."""
    said = row_location.require_objects(record.get("messages"), "messages")
    drafts = [_read_message(item, number, location) for number, item in enumerate(said, start=1)]
    return placeholders.build_example(record, location, drafts, read_keys=("messages",))


def _read_message(item: Mapping[str, Any], number: int, location: row_location.RowLocation) -> placeholders.DraftTurn:
    speaker = item.get("role")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise LorgnetteError(
            f"message {number} has the role {speaker!r}, not one of {', '.join(ROLES)}", hint="correct the role"
        )
    row_location.reject_unread_keys(item, ("role", "content"), ("tool_calls", "function_call"))
    content, role, name = item.get("content"), ROLES[speaker], f"message {number}'s content"
    if isinstance(content, list):
        return role, [_read_entry(entry, name, location) for entry in row_location.require_objects(content, name)]
    return placeholders.split_placeholders(role, row_location.require_string(content, name))


def _read_entry(entry: Mapping[str, Any], name: str, location: row_location.RowLocation) -> placeholders.Part:
    sort = entry.get("type")
    if sort == "text":
        return row_location.require_string(entry.get("text"), f"a text in {name}")
    if sort not in ("image", "image_url"):
        raise LorgnetteError(
            f"{name} holds an entry of type {sort!r}, not 'text', 'image' or 'image_url'",
            hint="remove it, or name its type",
        )
    given = [key for key in _PATH_KEYS if entry.get(key) is not None]
    if not given and sort == "image":
        return placeholders.NextImage
    if len(given) != 1:
        what = f"both {given[0]!r} and {given[1]!r}" if given else "no 'image_url'"
        raise LorgnetteError(f"a picture in {name} has {what}", hint="give it one path or data URI")
    path = entry[given[0]]
    if given[0] == "image_url" and isinstance(path, dict):
        path = path.get("url")
    return location.resolve_image(path, f"{given[0]!r} in {name}")


def to_record(example: Example) -> dict[str, Any]:
    """The record, as ms-swift and LLaMA-Factory read it too."""
    said, paths = placeholders.format_turns(example)
    messages = [{"role": role, "content": text} for role, text in said]
    return {"id": example.id, "messages": messages, **({"images": paths} if paths else {})}
