"""Which columns of a table hold the image, the caption and the question: by name, then by what is in them.

One judgement for every table: CSV, JSON, Parquet, the metadata of a folder, the tables of hubs. `ColumnChoice` has the
columns that the user named. An unclear choice is an error that lists the columns. Knows nothing about file formats.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lorgnette.data import fields
from lorgnette.data.formats import captions
from lorgnette.data.images import IMAGE_SUFFIXES
from lorgnette.data.row_location import EMPTY_CAPTION, ReadOptions, RowLocation, UnclearColumnsError
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

Kind = Literal["image", "bytes", "path", "text", "texts", "label", "number", "empty", "other"]
"""image: bytes with a path. bytes: bytes alone. path: text that ends like an image's name. text, texts: one or a list.
label: numbers that stand for names. empty: nothing in the first row. other: of no use."""
# Names without blanks, hyphens, underscores and capitals, as `_simplify` gives them.
_URL_NAMES = ("imageurl", "imageurls", "cocourl", "imgurl", "url")
_OWN_IMAGE_NAMES = ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "jpg", "png", "webp")
_PATH_NAMES = (
    *("imagepath", "imagepaths", "imgpath", "imagefile", "imagefilename", "imagename", "imgname", "photopath"),
    *("filename", "filepath", "file", "path"),
)
IMAGE_NAMES = (*_OWN_IMAGE_NAMES, *_PATH_NAMES, *_URL_NAMES)
_LABEL_NAMES = ("label", "labels", "class", "classname", "category")
_CAPTION_NAMES = (
    ("caption", "captions"),
    ("text", "texts", "sentences", "sentencesraw", "description", "descriptions", "alttext"),
)
_ANSWER_NAMES = ("answer", "answers", "response", "completion", "output")
CAPTION_NAMES = (*(name for group in _CAPTION_NAMES for name in group), *_ANSWER_NAMES)
_QUESTION_NAMES = ("question", "prompt", "query", "instruction")
_SYSTEM_NAMES = ("system", "systemprompt")
ID_COLUMNS = ("image_id", "cocoid")
"""Columns with an image's number in COCO, which gives the official name of a missing image."""
_NOT_CAPTIONS = (*_QUESTION_NAMES, *_SYSTEM_NAMES, *IMAGE_NAMES, *_LABEL_NAMES, "", "id", "imageid", "cocoid")
"""Names of columns that hold something else, unless the user chooses them."""
KNOWN_NAMES = frozenset({*_NOT_CAPTIONS, *CAPTION_NAMES} - {""})
_SEPARATOR = "&&"
"""Stands between the captions of an image in ModelScope's COCO tables."""
_IMAGE_ENDS = tuple(IMAGE_SUFFIXES)
_MAX_LAYOUTS = 1024
"""Sets of keys of a JSON's rows that are remembered."""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind


class Layout(NamedTuple):
    """The columns that are read. caption: None for questions without an answer."""

    image: str
    caption: str | None
    others: tuple[str, ...] = ()
    """Questions, system prompts, ids, marks."""


class OpenChoiceError(Exception):
    """A record whose columns are to be chosen, which only a process that reads all rows in order may do."""


class ColumnReader:
    """Reads the records of one file by their image and caption columns.

    columns: those of the file, if it names them with their kinds before its rows. is_table: all rows have the columns
    of the first. note: what else is said about the file, such as its separator.
    """

    may_choose: ClassVar[bool] = True
    """False in a process that has only some of the rows: a choice depends on the rows before it."""

    def __init__(
        self,
        options: ReadOptions,
        where: str,
        columns: Sequence[Column] | None = None,
        *,
        is_table: bool = False,
        note: str = "",
    ) -> None:
        self._options, self._where, self._note = options, where, note
        self._is_table = is_table or columns is not None
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self._table_layout: Layout | None = None
        self._reported: set[str] = set()
        self.names: list[str] | None = None
        """The columns that are read; None: not known before the first record."""
        self._skipped: tuple[str, ...] = ()
        if columns is not None:
            layout = self._table_layout = self._choose_layout(columns)
            self.names = list(dict.fromkeys(filter(None, (layout.image, layout.caption, *layout.others))))
            try:
                self._skipped = self._list_unread_keys(dict.fromkeys([c.name for c in columns], True), self.names)
            except LorgnetteError as error:
                raise UnclearColumnsError(error.message, where=where, hint=error.hint) from None

    def read_record(self, record: Mapping[str, Any], location: RowLocation) -> list[Example]:
        """One example for each caption. Raises LorgnetteError if no choice is clear; UnclearColumnsError in a table."""
        image, caption, others = self.find_layout(record)
        read_keys: tuple[str, ...] = image, caption or image
        context, id_, number = captions.NO_CONTEXT, location.id, ""
        if others:
            context = read_context(record, taken=(image, caption))
            number = next((str(record[key]) for key in ID_COLUMNS if record.get(key) is not None), "")
            ids = [key for key in others if is_named(key, ("id",)) and isinstance(record.get(key), str | int)]
            id_ = fields.read_id({"id": record[ids[0]]}, id_) if ids else id_
            read_keys = (*read_keys, *ids[:1], *ID_COLUMNS, *context.columns)
        coco_id = int(number) if number.isdecimal() and len(number) <= 12 else None
        value = record.get(image)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not fields.has_content(value):
            raise LorgnetteError(f"{image!r} is empty, not an image", hint="write its path, or remove the row")
        unread_keys = self._list_unread_keys(record, read_keys)
        texts = None if caption is None else record.get(caption)
        if isinstance(texts, str) and "image_id" in record and _SEPARATOR in texts:
            texts = [text.strip() for text in texts.split(_SEPARATOR)]
        if not isinstance(value, str) and caption and not fields.has_content(texts):  # before the image is extracted
            raise LorgnetteError(EMPTY_CAPTION, hint="write one, or remove the row")
        return captions.build_examples(
            location.resolve_image(value, repr(image), coco_id=coco_id),
            texts,
            location,
            name=repr(caption),
            id_=id_,
            context=context,
            unread_keys=fields.join_keys(unread_keys, self._skipped),
            has_captions=caption is not None,
        )

    def find_layout(self, record: Mapping[str, Any]) -> Layout:
        """The columns of this record: chosen anew for every set of keys, or once for a table."""
        if self._table_layout is not None:
            return self._table_layout
        names = tuple(record)
        if names not in self._layouts:
            if not ColumnReader.may_choose:
                raise OpenChoiceError
            if len(self._layouts) >= _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[names] = self._choose_layout(describe_columns(record))
        if self._is_table:
            self._table_layout = self._layouts[names]
        return self._layouts[names]

    def _choose_layout(self, columns: Sequence[Column]) -> Layout:
        try:
            layout = choose_columns(columns, self._options, where=self._where)
        except LorgnetteError as error:
            if self._is_table:
                raise UnclearColumnsError(error.message, where=self._where, hint=error.hint) from None
            # A row that lacks a key of the rows before it.
            names = {column.name for column in columns}
            earlier = [layout for layout in self._layouts.values() if layout.caption and layout.image in names]
            if not earlier:
                raise
            return earlier[-1]
        if text := self._describe(layout):
            if text not in self._reported:
                self._options.on_columns(f"{Path(self._where).name}: {text}")
            self._reported.add(text)
        return layout

    def _describe(self, layout: Layout) -> str:
        """What was understood, for people; "" if nothing needs to be said: the columns have our own names."""
        roles = {layout.image: "image", layout.caption or "": "caption" if layout.caption else ""}
        roles |= {name: "question" for name in layout.others if is_named(name, _QUESTION_NAMES)}
        roles |= {name: "system prompt" for name in layout.others if is_named(name, _SYSTEM_NAMES)}
        is_plain = all(name == role or (name, role) == ("image_path", "image") for name, role in roles.items())
        if is_plain and not self._note:
            return ""
        columns = ", ".join(f"{name} → {role}" for name, role in roles.items() if role)
        return columns + ("" if layout.caption else ", no captions") + (f"; {self._note}" if self._note else "")

    def _list_unread_keys(self, record: Mapping[str, Any], read_keys: Sequence[str]) -> tuple[str, ...]:
        """Columns that the user chose are all that training needs: then no other column is refused."""
        hint = "name the columns that hold what is asked for: --image-column, --caption-column"
        is_strict = not self._options.columns.is_explicit
        return fields.check_row_keys(record, read_keys, marks=fields.TABLE_MARKS, is_strict=is_strict, hint=hint)


def choose_columns(columns: Sequence[Column], options: ReadOptions, *, where: str) -> Layout:
    """The columns as requested or as recognized. Raises LorgnetteError with a list of the columns."""
    choice, names = options.columns, [column.name for column in columns]
    image = choice.image or _find_image(columns, where, is_remote=options.is_remote)
    caption = choice.caption or find_caption(columns, image, is_remote=options.is_remote)
    others = tuple(
        name for name in names
        if name not in (image, caption)
        and (name in (*ID_COLUMNS, *fields.TABLE_MARKS) or is_named(name, ("id", *_QUESTION_NAMES, *_SYSTEM_NAMES)))
    )  # fmt: skip
    if caption is None and image in names and not options.is_remote and {*names} <= {image, *others, ""}:
        return Layout(str(image), None, others)
    for option, name in (("image", image), ("caption", caption)):
        if name not in names:
            fact = f"there is no column {name!r}" if name else f"it is not clear which column holds the {option}s"
            described = ", ".join(f"{_shorten(column.name)} ({column.kind})" for column in columns[:30]) or "none"
            hint = f"name it: --{option}-column NAME, or data.{option}_column=NAME"
            hint += "; a conversation is under 'messages' or 'conversations'" if option == "image" and not image else ""
            raise LorgnetteError(f"{fact}; the columns are {described}", hint=hint)
    return Layout(str(image), caption, others)


def find_caption(columns: Sequence[Column], image: str | None, *, is_remote: bool = False) -> str | None:
    """The column of captions or answers, the only text, or the labels; None if the choice is not clear.

    Beside a question, the answer is meant. On a hub, a prompt alone describes its image.
    """
    columns = [c for c in columns if c.name != image and c.kind not in ("image", "bytes", "other")]
    has_question = any(is_named(column.name, _QUESTION_NAMES) for column in columns)
    groups = (_ANSWER_NAMES, *_CAPTION_NAMES) if has_question else (*_CAPTION_NAMES, _ANSWER_NAMES)
    rest = [column for column in columns if not is_named(column.name, (*_NOT_CAPTIONS, *fields.TABLE_MARKS))]
    prompts = [column.name for column in columns if is_remote and is_named(column.name, ("prompt",))]
    matches = (
        _match([column.name for column in columns], groups)
        or [column.name for column in rest if column.kind in ("text", "texts")]
        or [column.name for column in rest if column.kind == "empty"]
        or _match([column.name for column in columns], (_LABEL_NAMES,))
        or [column.name for column in columns if column.kind == "label"]
        or prompts
    )
    return matches[0] if len(matches) == 1 else None


def _find_image(columns: Sequence[Column], where: str, *, is_remote: bool) -> str | None:
    """None if the choice is not clear. Of a local file, a path is read rather than the URL that it came from."""
    groups = (_OWN_IMAGE_NAMES, _URL_NAMES, _PATH_NAMES) if is_remote else (_OWN_IMAGE_NAMES + _PATH_NAMES, _URL_NAMES)
    for kind in ("image", "bytes"):
        if names := [column.name for column in columns if column.kind == kind]:
            matches = names if len(names) == 1 else _match(names, groups)
            return matches[0] if len(matches) == 1 else None
    texts = [column for column in columns if column.kind not in ("label", "other")]
    # In the description of a folder a URL says only where the file came from.
    if where.endswith(("metadata.csv", "metadata.jsonl")) and any(column.name == "file_name" for column in texts):
        return "file_name"
    matches = _match([column.name for column in texts], groups)
    paths = [column.name for column in texts if column.kind == "path" and (not matches or column.name in matches)]
    matches = matches if len(matches) == 1 else paths
    return matches[0] if len(matches) == 1 else None


def _match(names: Sequence[str], groups: Sequence[Collection[str]]) -> list[str]:
    """The names that are in the first group that has any."""
    return next(filter(None, ([name for name in names if is_named(name, group)] for group in groups)), [])


def is_path(text: str) -> bool:
    """Whether a cell looks like the path of an image."""
    return text.rstrip().lower().endswith(_IMAGE_ENDS)


def describe_columns(record: Mapping[str, Any]) -> list[Column]:
    return [Column(name, _detect_kind(value)) for name, value in record.items()]


def _detect_kind(value: object) -> Kind:
    if isinstance(value, str):
        if not value.strip():
            return "empty"
        return "path" if is_path(value) else "number" if _NUMBER.fullmatch(value) else "text"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Mapping):
        return "image" if "bytes" in value or "path" in value else "other"
    if isinstance(value, list):
        return "texts" if all(isinstance(item, str | dict) for item in value) else "other"
    return "empty" if value is None else "number" if isinstance(value, int | float) else "other"


_NUMBER = re.compile(r"\s*[-+]?[\d.,]+(?:[eE][-+]?\d+)?\s*%?\s*")


def is_named(name: str, wanted: Collection[str]) -> bool:
    """Whether a column has one of these names; case, blanks, hyphens and underscores do not matter."""
    return _simplify(name) in wanted or name in wanted


@lru_cache(maxsize=4096)
def _simplify(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _shorten(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def read_context(record: Mapping[str, Any], taken: Collection[str | None] = ()) -> captions.Context:
    """The row's own question and system prompt. taken: columns that hold something else."""
    groups = _find_context_columns(tuple(record))
    if not any(groups):
        return captions.NO_CONTEXT
    question_column, system_column = (
        next((name for name in group if record[name] is not None and name not in taken), None) for group in groups
    )
    if question_column is None and system_column is None:
        return captions.NO_CONTEXT
    question = system = None
    if question_column is not None:
        question = fields.require_string(record[question_column], repr(question_column))
        if not question.strip():
            raise LorgnetteError(f"{question_column!r} is empty", hint="write the question, or remove the row")
    if system_column is not None:
        system = fields.require_string(record[system_column], repr(system_column))
    names = tuple(column for column in (question_column, system_column) if column is not None)
    return captions.Context(question, system, names)


@lru_cache(maxsize=1024)
def _find_context_columns(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of questions and of system prompts, best first. Cached: most rows have the same columns."""
    questions, systems = (
        tuple(sorted((n for n in names if is_named(n, wanted)), key=lambda n: wanted.index(_simplify(n))))
        for wanted in (_QUESTION_NAMES, _SYSTEM_NAMES)
    )
    return questions, systems
