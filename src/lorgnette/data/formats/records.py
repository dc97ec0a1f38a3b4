"""A record of any format → Examples: conversations, recognized by a key, or an image with its captions.

Knows nothing about files.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lorgnette.data.formats import columns, conversations, llava, messages, queries
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


@lru_cache(maxsize=1024)
def list_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    """The formats of conversations whose keys are among the names. Cached: most rows have the same keys.

    A question beside an image and a caption is a row of captions.
    """
    wanted = columns.IMAGE_NAMES, columns.CAPTION_NAMES
    has_caption = all(any(columns.is_named(name, group) for name in names) for group in wanted)
    return tuple(
        key for key in RECORD_FORMATS
        if key in names and not (has_caption and key in _ANSWER_KEYS and _ANSWER_KEYS[key] not in names)
    )  # fmt: skip


class RecordReader:
    """Reads the records of one file: conversations, or an image and its captions in columns."""

    def __init__(
        self,
        options: ReadOptions,
        where: str,
        schema: Sequence[columns.Column] | None = None,
        *,
        is_table: bool = False,
        note: str = "",
    ) -> None:
        """As in `ColumnReader`. schema: the file's columns, if it names them with their kinds before its rows."""
        self._prefers_columns = options.columns.is_explicit
        has_formats = not self._prefers_columns and list_formats(tuple(column.name for column in schema or ()))
        own_schema = None if has_formats else schema
        self._columns = columns.ColumnReader(options, where, own_schema, is_table=is_table, note=note)

    @property
    def names(self) -> list[str] | None:
        """The columns that are read; None: all of them."""
        return self._columns.names

    def list_required(self, record: Mapping[str, Any]) -> Sequence[str]:
        """The columns of a table without which its rows cannot be read."""
        if not self._prefers_columns and list_formats(tuple(record)):
            return tuple(record)
        layout = self._columns.find_layout(record)
        return [name for name in (layout.image, layout.caption, *layout.others) if name]

    def __call__(self, record: Mapping[str, Any], location: RowLocation) -> list[Example]:
        formats = () if self._prefers_columns else list_formats(tuple(record))
        if not formats:
            return self._columns.read_record(record, location)
        if len(formats) > 1:
            hint = f"give it one of {', '.join(map(repr, RECORD_FORMATS))}, or 'image_path' and 'caption'"
            raise LorgnetteError(f"the row has both {formats[0]!r} and {formats[1]!r}", hint=hint)
        return [RECORD_FORMATS[formats[0]](record, location)]


def read_record(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
    """The examples of a single record in any format."""
    return RecordReader(ReadOptions(), "")(record, location)
