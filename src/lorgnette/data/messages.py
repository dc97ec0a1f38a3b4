"""Messages (role, content) with `images` → Example: the form of TRL, ms-swift, LLaMA-Factory and the chat APIs.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["cat.jpg"]}

Content is text, in which the user's `<image>` stands for the next of `images`; or a list of {"type": "text", "text"}
and {"type": "image"} entries, whose picture is under "image", "path" or "url" (a local one), or is the next of
`images`. In such a list text is text, `<image>` included. Nothing else is special: `<|im_end|>` is text everywhere.

Knows nothing about files of records. Texts and pictures stay where they stand and as they are written.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lorgnette.data import fields
from lorgnette.data.text import kind
from lorgnette.data.turns import merged, must_be_learnable
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Role, Turn

PLACEHOLDER = "<image>"
ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_PATHS = ("image", "path", "url")
_UNREAD = (
    *("image", "video", "videos", "audio", "audios", "objects", "system", "tools"),
    *("rejected", "rejected_response", "rejected_messages"),
)


class _Here:
    """Stands for the next of `images` until they are dealt out."""


Part = str | Picture | type[_Here]


def example(record: Mapping[str, Any], place: fields.Place) -> Example:
    """One record read. Relative paths start at the file's folder."""
    fields.must_be_read(record, ("id", "messages", "images"), _UNREAD)
    said = fields.objects(record.get("messages"), "messages")
    drafts = [_draft(item, number, place) for number, item in enumerate(said, start=1)]
    turns = tuple(_dealt(drafts, _images(record, place)))
    must_be_learnable(turns)
    return Example(fields.identity(record, place), turns, place.source, place.row)


def _draft(item: Mapping[str, Any], number: int, place: fields.Place) -> tuple[Role, list[Part]]:
    speaker = item.get("role")
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise LorgnetteError(
            f"message {number} has the role {speaker!r}, not one of {', '.join(ROLES)}", remedy="correct the role"
        )
    content, role, name = item.get("content"), ROLES[speaker], f"message {number}'s content"
    if isinstance(content, list):
        return role, [_entry(entry, name, place) for entry in fields.objects(content, name)]
    text = fields.string(content, name)
    return role, list(_split(text)) if role == "user" else [text]


def _split(text: str) -> Iterator[Part]:
    first, *others = text.split(PLACEHOLDER)
    yield first
    for other in others:
        yield _Here
        yield other


def _entry(entry: Mapping[str, Any], name: str, place: fields.Place) -> Part:
    sort = entry.get("type")
    if sort == "text":
        return fields.string(entry.get("text"), f"a text in {name}")
    if sort != "image":
        raise LorgnetteError(
            f"{name} holds an entry of type {sort!r}, not 'text' or 'image'", remedy="remove it, or name its type"
        )
    given = [key for key in _PATHS if entry.get(key) is not None]
    if not given:
        return _Here
    if len(given) > 1:
        raise LorgnetteError(f"a picture in {name} has both {given[0]!r} and {given[1]!r}", remedy="keep one")
    return fields.picture(fields.string(entry[given[0]], f"{given[0]!r} in {name}"), place.folder)


def _images(record: Mapping[str, Any], place: fields.Place) -> list[Picture]:
    images = record.get("images")
    if images is None:
        return []
    if not isinstance(images, list):
        raise LorgnetteError(f"'images' is {kind(images)}, not a list of paths", remedy="write ['…', '…']")
    return [
        fields.picture(fields.string(path, f"image {number}"), place.folder)
        for number, path in enumerate(images, start=1)
    ]


def _dealt(drafts: list[tuple[Role, list[Part]]], images: list[Picture]) -> Iterator[Turn]:
    """Each placeholder takes the next picture. No placeholder at all and a single user turn: they go before its text,
    since nothing else can be meant."""
    holders = sum(part is _Here for _, parts in drafts for part in parts)
    users = [parts for role, parts in drafts if role == "user"]
    if images and not holders and len(users) == 1 and not any(isinstance(part, Picture) for part in users[0]):
        users[0][:0] = images
    elif holders != len(images):
        raise LorgnetteError(
            f"{holders} × {PLACEHOLDER} in the user's text, but {len(images)} in 'images'",
            remedy=f"write one {PLACEHOLDER} where each picture belongs",
        )
    queue = iter(images)
    for role, parts in drafts:
        yield Turn(role, merged(next(queue) if isinstance(part, type) else part for part in parts))
