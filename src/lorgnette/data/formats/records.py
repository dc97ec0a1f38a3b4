"""A record of any format → Examples: conversations, recognized by a key, or an image with its captions.

Knows nothing about files.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lorgnette.data.formats import captions, conversations, llava, messages, queries
from lorgnette.data.formats.columns import Column, ColumnPair, ColumnReader
from lorgnette.data.row_location import ReadOptions, RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example


def _read_conversation(record: Mapping[str, Any], location: RowLocation) -> Example:
    """The tutorial's if an image is in a text and none beside the turns, else LLaVA's."""
    has_images = "image" in record or "images" in record
    is_tutorial = not has_images and conversations.has_markers(record)
    return conversations.read_record(record, location) if is_tutorial else llava.read_record(record, location)


RECORD_FORMATS: dict[str, Callable[[Mapping[str, Any], RowLocation], Example]] = {
    "conversations": _read_conversation,
    "messages": messages.read_record,
    "query": queries.read_query,
    "instruction": queries.read_alpaca,
    "conversation": queries.read_conversation,
}
_ANSWER_KEYS = {"query": "response", "instruction": "output"}


def read_record(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
    """The examples of a record in any format; an image and its captions have the fixed names of `captions`."""
    formats = list_formats(tuple(record))
    if len(formats) == 1:
        return [RECORD_FORMATS[formats[0]](record, location)]
    if not formats and any(key in record for key in captions.IMAGE_COLUMNS):
        return captions.read_record(record, location)
    keys = ", ".join(repr(key) for key in list(record)[:8]) or "no keys"
    message = f"the row has both {formats[0]!r} and {formats[1]!r}" if formats else f"the row has {keys}"
    hint = f"give it one of {', '.join(map(repr, RECORD_FORMATS))}, or 'image_path' and 'caption'"
    raise LorgnetteError(message, hint=hint)


@lru_cache(maxsize=1024)
def list_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """The formats of conversations whose keys are among the names. Cached: most rows have the same keys.

    A question beside an image and a caption is a row of captions.
    """
    wanted = captions.IMAGE_COLUMNS, (*captions.CAPTION_COLUMNS, *captions.ANSWER_COLUMNS)
    has_caption = all(any(name in names for name in group) for group in wanted)
    return tuple(
        key for key in RECORD_FORMATS
        if key in names and not (has_caption and key in _ANSWER_KEYS and _ANSWER_KEYS[key] not in names)
    )  # fmt: skip


class RecordReader:
    """Reads the records of one file. If `options.columns` is set, image and caption columns are recognized."""

    def __init__(self, options: ReadOptions, where: str, columns: Sequence[Column] | None = None) -> None:
        """columns: those of the file, if it names them before its rows."""
        self._columns: ColumnReader | None = None
        names = [] if columns is None else [column.name for column in columns]
        choice = options.columns
        if choice is not None and (choice.is_explicit or RECORD_FORMATS.keys().isdisjoint(names)):
            self._columns = ColumnReader(choice, where, columns)
        self._prefers_columns = choice is not None and choice.is_explicit

    @property
    def names(self) -> list[str] | None:
        """The columns that are read; None: all of them."""
        return None if self._columns is None else self._columns.names

    @property
    def pair(self) -> ColumnPair | None:
        """The columns of images and captions, if they are recognized by the file's columns."""
        return None if self._columns is None else self._columns.pair

    def __call__(self, record: Mapping[str, Any], location: RowLocation) -> list[Example]:
        if self._columns is None or (not self._prefers_columns and not RECORD_FORMATS.keys().isdisjoint(record)):
            return read_record(record, location)
        return self._columns.read_record(record, location)
