"""Checks the fields of one raw row: text is text, lists hold objects, and no key is ignored silently.

Knows nothing about the format of the row. Every check raises a LorgnetteError that names the field.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError

_VIDEO_OR_AUDIO = {"video", "videos", "audio", "audios"}


def require_string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not text", hint=f"put text into {name}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character"
            raise LorgnetteError(f"{name} has {half}", hint="write the whole character") from error
    return value


def require_objects(value: object, name: str) -> list[Mapping[str, Any]]:
    """A list that holds only objects."""
    if not isinstance(value, list):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not a list", hint=f"make {name} a list of objects")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            message = f"{name}, item {number} is {describe_type(item)}, not an object"
            raise LorgnetteError(message, hint="write it as {…}")
    return value


def read_id(record: Mapping[str, Any], default: str) -> str:
    """The row's own id (text or a number), else `default`."""
    value = record.get("id")
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return require_string(value, "id")


def reject_unread_keys(record: Mapping[str, Any], read_keys: Sequence[str], unread_keys: Sequence[str]) -> None:
    """Raise if the record has content under keys that this format does not read: it would be lost silently."""
    if record.keys().isdisjoint(unread_keys):
        return
    lost = [key for key in unread_keys if key not in read_keys and record.get(key)]
    if unsupported := [key for key in lost if key in _VIDEO_OR_AUDIO]:
        message = f"the row has {', '.join(map(repr, unsupported))}; only images and text are supported"
        raise LorgnetteError(message, hint="remove the row, or use single images of it")
    if lost:
        message = f"the row has {', '.join(map(repr, lost))}, which this format does not read"
        raise LorgnetteError(message, hint=f"remove it, or use {', '.join(map(repr, read_keys))}")
