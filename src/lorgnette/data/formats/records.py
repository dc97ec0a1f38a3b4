"""A record of any format → Examples: conversations, recognized by a key, or an image with its captions.

Knows nothing about files.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorgnette.data.formats import captions, conversations, llava, messages, queries
from lorgnette.data.formats.columns import ID_COLUMNS, Column, ColumnReader
from lorgnette.data.row_location import ReadOptions, RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example


def _read_conversation(record: Mapping[str, Any], location: RowLocation) -> Example:
    """The tutorial's, or LLaVA's if images are beside the turns and not in them."""
    has_images = "image" in record or "images" in record
    return llava.read_record(record, location) if has_images else conversations.read_record(record, location)


RECORD_FORMATS: dict[str, Callable[[Mapping[str, Any], RowLocation], Example]] = {
    "conversations": _read_conversation,
    "messages": messages.read_record,
    "query": queries.read_query,
    "instruction": queries.read_alpaca,
    "conversation": queries.read_conversation,
}


def read_record(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
    """The examples of a record in any format; an image and its captions have the fixed names of `captions`."""
    formats = [key for key in RECORD_FORMATS if key in record]
    if len(formats) == 1:
        return [RECORD_FORMATS[formats[0]](record, location)]
    if not formats and any(key in record for key in captions.IMAGE_COLUMNS):
        return captions.read_record(record, location)
    keys = ", ".join(repr(key) for key in list(record)[:8]) or "no keys"
    message = f"the row has both {formats[0]!r} and {formats[1]!r}" if formats else f"the row has {keys}"
    hint = f"give it one of {', '.join(map(repr, RECORD_FORMATS))}, or 'image_path' and 'caption'"
    raise LorgnetteError(message, hint=hint)


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
        self.names: list[str] | None = None
        """The columns that are read; None: all of them."""
        if self._columns is not None and (pair := self._columns.pair) is not None:
            ids = [name for name in ("id", *ID_COLUMNS) if name in names]
            self.names = list(dict.fromkeys([pair.image, pair.caption, *ids]))

    def __call__(self, record: Mapping[str, Any], location: RowLocation) -> list[Example]:
        if self._columns is None or (not self._prefers_columns and not RECORD_FORMATS.keys().isdisjoint(record)):
            return read_record(record, location)
        return self._columns.read_record(record, location)
