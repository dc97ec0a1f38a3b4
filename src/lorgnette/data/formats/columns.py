"""Which column holds the image and which the caption: by type first, then by name.

Tables of others name their columns in many ways, and a user cannot rename the columns of a parquet file or of a data
set on a hub. An unclear choice is an error that lists the columns. Local CSV and JSON files have fixed names instead
(`captions`). Knows nothing about file formats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorgnette.data.fields import read_id
from lorgnette.data.formats import captions
from lorgnette.data.row_location import ColumnChoice, RowLocation, UnclearColumnsError
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

Kind = Literal["image", "bytes", "text", "texts", "other"]
"""image: bytes with a path. bytes: bytes alone. text, texts: one or a list. other: numbers and the like."""
IMAGE_NAMES = (
    ("image", "picture", "img", "jpg", "png", "webp"),
    ("image_url", "coco_url", "img_url", "url"),
    ("image_path", "img_path", "file_name", "filename", "path"),
)
CAPTION_NAMES = (
    ("caption", "captions"),
    ("sentences_raw", "sentences", "text", "texts", "description"),
    ("answer", "answers"),
)
ID_COLUMNS = ("image_id", "cocoid")
"""Columns with an image's number in COCO, which gives the official name of a missing image."""
_SEPARATOR = "&&"
"""Stands between the captions of an image in ModelScope's COCO tables."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class ColumnPair:
    image: str
    caption: str


class ColumnReader:
    """Reads the records of one file by an image column and a caption column, chosen from the first record."""

    def __init__(self, choice: ColumnChoice, where: str, columns: Sequence[Column] | None = None) -> None:
        self._choice, self._where = choice, where
        self.pair = None if columns is None else choose_columns(columns, choice, where=where)

    def read_record(self, record: Mapping[str, Any], location: RowLocation) -> list[Example]:
        """One example for each caption. Raises UnclearColumnsError at the first record if no choice is clear."""
        if self.pair is None:
            columns = [Column(name, _detect_kind(value)) for name, value in record.items()]
            self.pair = choose_columns(columns, self._choice, where=self._where)
        image, caption = self.pair.image, self.pair.caption
        number = next((str(record[key]) for key in ID_COLUMNS if record.get(key) is not None), "")
        coco_id = int(number) if number.isdecimal() and len(number) <= 12 else None
        if not record.get(image):
            raise LorgnetteError(f"{image!r} is empty, not an image", hint="add the image, or remove the row")
        value, has_separator = record.get(caption), "image_id" in record
        has_fixed_names = image in captions.IMAGE_COLUMNS and caption in captions.CAPTION_COLUMNS
        texts = read_captions(value, separator=_SEPARATOR if has_separator else None)
        if texts and isinstance(value, str) and not has_separator and has_fixed_names:
            texts = [value]  # as written, like a file with the fixed names
        if not texts:
            raise LorgnetteError("the caption is empty", hint="write one, or remove the row")
        return captions.build_examples(
            location.resolve_image(record.get(image), repr(image), coco_id=coco_id),
            texts,
            location,
            name=repr(caption),
            id_=read_id(record, location.id) if isinstance(record.get("id"), str | int) else location.id,
        )


def choose_columns(columns: Sequence[Column], choice: ColumnChoice, *, where: str) -> ColumnPair:
    """The two columns, as requested or as recognized. Raises UnclearColumnsError with a list of the columns."""
    image = choice.image or _find_image(columns, where)
    texts = [column.name for column in columns if column.name != image and column.kind in ("text", "texts")]
    caption = choice.caption or (texts[0] if len(texts) == 1 else _select(texts, CAPTION_NAMES))
    names = [column.name for column in columns]
    for option, name in (("image", image), ("caption", caption)):
        if name not in names:
            problem = f"there is no column {name!r}" if name else f"it is not clear which column holds the {option}s"
            described = ", ".join(f"{column.name} ({column.kind})" for column in columns[:30])
            message, hint = f"{problem}; the columns are {described}", f"name it with --{option}-column"
            raise UnclearColumnsError(message, where=where, hint=hint)
    return ColumnPair(str(image), str(caption))


def read_captions(value: Any, *, separator: str | None = None) -> list[str]:
    """The texts of a cell, stripped: a text, a list of them, or of objects with a `raw`, `caption` or `text`.

    separator: the text between several captions.
    """
    if isinstance(value, str):
        parts: Sequence[str] = value.split(separator) if separator else [value]
        return [part.strip() for part in parts if part.strip()]
    if isinstance(value, Mapping):
        return next((read_captions(value[key]) for key in ("raw", "caption", "text") if value.get(key)), [])
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [text for item in value for text in read_captions(item)]
    return []


def _detect_kind(value: Any) -> Kind:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, list) and all(isinstance(item, str | dict) for item in value):
        return "texts"
    return "other"


def _find_image(columns: Sequence[Column], where: str) -> str | None:
    """None if the choice is not clear."""
    for kind in ("image", "bytes"):
        if names := [column.name for column in columns if column.kind == kind]:
            return names[0] if len(names) == 1 else _select(names, IMAGE_NAMES)
    names = [column.name for column in columns if column.kind == "text"]
    # In the description of a folder a URL says only where the file came from.
    is_metadata = where.endswith(("metadata.csv", "metadata.jsonl"))
    return "file_name" if is_metadata and "file_name" in names else _select(names, IMAGE_NAMES)


def _select(names: Sequence[str], known: Sequence[Sequence[str]]) -> str | None:
    """The one name of the first group that has any; None if that group has two."""
    groups = ([name for name in names if name.lower() in group] for group in known)
    matches = next(filter(None, groups), [])
    return matches[0] if len(matches) == 1 else None
