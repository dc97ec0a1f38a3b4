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

from lorgnette.data import rows
from lorgnette.data.formats import placeholders
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Role

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_PATHS = ("image", "path", "url", "image_url")


def example(record: Mapping[str, Any], place: rows.Place) -> Example:
    """One record read."""
    said = rows.objects(record.get("messages"), "messages")
    drafts = [_draft(item, number, place) for number, item in enumerate(said, start=1)]
    return placeholders.example(record, place, drafts, known=("messages",))


def _draft(item: Mapping[str, Any], number: int, place: rows.Place) -> placeholders.Draft:
    speaker = item.get("role")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise LorgnetteError(
            f"message {number} has the role {speaker!r}, not one of {', '.join(ROLES)}", remedy="correct the role"
        )
    rows.must_be_read(item, ("role", "content"), ("tool_calls", "function_call"))
    content, role, name = item.get("content"), ROLES[speaker], f"message {number}'s content"
    if isinstance(content, list):
        return role, [_entry(entry, name, place) for entry in rows.objects(content, name)]
    return placeholders.draft(role, rows.string(content, name))


def _entry(entry: Mapping[str, Any], name: str, place: rows.Place) -> placeholders.Part:
    sort = entry.get("type")
    if sort == "text":
        return rows.string(entry.get("text"), f"a text in {name}")
    if sort not in ("image", "image_url"):
        raise LorgnetteError(
            f"{name} holds an entry of type {sort!r}, not 'text', 'image' or 'image_url'",
            remedy="remove it, or name its type",
        )
    given = [key for key in _PATHS if entry.get(key) is not None]
    if not given and sort == "image":
        return placeholders.Next
    if len(given) != 1:
        what = f"both {given[0]!r} and {given[1]!r}" if given else "no 'image_url'"
        raise LorgnetteError(f"a picture in {name} has {what}", remedy="give it one path or data URI")
    path = entry[given[0]]
    if given[0] == "image_url" and isinstance(path, dict):
        path = path.get("url")
    return place.picture(path, f"{given[0]!r} in {name}")


def written(example_: Example) -> dict[str, Any]:
    """The record, as ms-swift and LLaMA-Factory read it too."""
    said, paths = placeholders.written(example_)
    messages = [{"role": role, "content": text} for role, text in said]
    return {"id": example_.id, "messages": messages, **({"images": paths} if paths else {})}
