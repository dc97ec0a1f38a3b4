"""Which column holds the image and which the caption: by type first, then by name.

Tables of others name their columns in many ways, and a user cannot rename the columns of a parquet file or of a data
set on a hub. An unclear choice is an error that lists the columns. Local CSV and JSON files have fixed names instead
(`captions`). Knows nothing about file formats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lorgnette.data import fields
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
    captions.ANSWER_COLUMNS,
)
ID_COLUMNS = ("image_id", "cocoid")
"""Columns with an image's number in COCO, which gives the official name of a missing image."""
_SEPARATOR = "&&"
"""Stands between the captions of an image in ModelScope's COCO tables."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind


class ColumnPair(NamedTuple):
    image: str
    caption: str


class ColumnReader:
    """Reads the records of one file by an image column and a caption column, chosen from the first record.

    columns: those of the file, if it names them before its rows.
    """

    def __init__(self, choice: ColumnChoice, where: str, columns: Sequence[Column] | None = None) -> None:
        self._choice, self._where = choice, where
        self.pair = None if columns is None else choose_columns(columns, choice, where=where)
        self.names: list[str] | None = None
        """The columns that are read; None: not known before the first record."""
        self._skipped: tuple[str, ...] = ()
        if columns is not None and self.pair is not None:
            self.names, self._skipped = self._split_names([column.name for column in columns], self.pair)

    def _split_names(self, names: Sequence[str], pair: ColumnPair) -> tuple[list[str], tuple[str, ...]]:
        """(the columns that are read, the others). Raises UnclearColumnsError if training would miss one of them."""
        known = ("id", *ID_COLUMNS, *fields.TABLE_MARKS)
        context = (*captions.QUESTION_COLUMNS, *captions.SYSTEM_COLUMNS)
        others = [name for name in names if name in known or captions.is_named(name, context)]
        read = list(dict.fromkeys([pair.image, pair.caption, *others]))
        try:
            skipped = self._list_unread_keys(dict.fromkeys(names, True), read)
        except LorgnetteError as error:
            raise UnclearColumnsError(error.message, where=self._where, hint=error.hint) from None
        return read, skipped

    def _list_unread_keys(self, record: Mapping[str, Any], read_keys: Sequence[str]) -> tuple[str, ...]:
        """Columns that the user chose are all that training needs: then no other column is refused."""
        hint = "name the columns that hold what is asked for: --image-column, --caption-column"
        is_strict = not self._choice.is_explicit
        return fields.check_row_keys(record, read_keys, marks=fields.TABLE_MARKS, is_strict=is_strict, hint=hint)

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
        texts = read_captions(record.get(caption), separator=_SEPARATOR if "image_id" in record else None)
        if not texts:
            raise LorgnetteError("the caption is empty", hint="write one, or remove the row")
        context = captions.read_context(record, taken=(image, caption))
        unread_keys = self._list_unread_keys(record, ("id", *ID_COLUMNS, image, caption, *context.columns))
        return captions.build_examples(
            location.resolve_image(record.get(image), repr(image), coco_id=coco_id),
            texts,
            location,
            name=repr(caption),
            id_=fields.read_id(record, location.id) if isinstance(record.get("id"), str | int) else location.id,
            context=context,
            unread_keys=fields.join_keys(unread_keys, self._skipped),
        )


def choose_columns(columns: Sequence[Column], choice: ColumnChoice, *, where: str) -> ColumnPair:
    """The two columns, as requested or as recognized. Raises UnclearColumnsError with a list of the columns."""
    image = choice.image or _find_image(columns, where)
    caption = choice.caption or _find_caption(columns, image)
    names = [column.name for column in columns]
    for option, name in (("image", image), ("caption", caption)):
        if name not in names:
            problem = f"there is no column {name!r}" if name else f"it is not clear which column holds the {option}s"
            described = ", ".join(f"{column.name} ({column.kind})" for column in columns[:30])
            message, hint = f"{problem}; the columns are {described}", f"name it with --{option}-column"
            raise UnclearColumnsError(message, where=where, hint=hint)
    return ColumnPair(str(image), str(caption))


def _find_caption(columns: Sequence[Column], image: str | None) -> str | None:
    """None if the choice is not clear. Beside a question, the answer is meant; a prompt alone describes its image."""
    texts = [column.name for column in columns if column.name != image and column.kind in ("text", "texts")]
    if len(texts) == 1 and captions.is_named(texts[0], (*captions.QUESTION_COLUMNS, *captions.SYSTEM_COLUMNS)):
        return texts[0] if captions.is_named(texts[0], ("prompt",)) else None
    questions = [name for name in texts if captions.is_named(name, captions.QUESTION_COLUMNS)]
    context = [*questions, *(name for name in texts if captions.is_named(name, captions.SYSTEM_COLUMNS))]
    texts = [name for name in texts if name not in context]
    *groups, answers = CAPTION_NAMES
    return texts[0] if len(texts) == 1 else _select(texts, (answers, *groups) if questions else CAPTION_NAMES)


def read_captions(value: Any, *, separator: str | None = None) -> list[str]:
    """The texts of a cell that are not blank: a text, a list of them, or of objects with a `raw`, `caption` or `text`.

    separator: the text between several captions; blanks around it go with it.
    """
    if isinstance(value, str):
        if separator and separator in value:
            return [part.strip() for part in value.split(separator) if part.strip()]
        return [value] if value.strip() else []
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
    if isinstance(value, Mapping):
        return "image" if "bytes" in value else "other"
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
