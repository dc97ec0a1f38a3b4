"""Rows in memory → a folder with `data.jsonl` and `images/`, read like any data set on disk.

    [{"image": PIL.Image, "caption": "a cat asleep"}, …]         or a path, an array or bytes for the image
    a pandas DataFrame, a datasets.Dataset, any iterable of dicts

A row has the keys of any format that docs/data.md describes. Nothing is lost: the pixels of an image are written as
PNG, with its orientation and color profile; texts keep their blanks. Relative paths start in the current folder.
Imports neither pandas nor datasets.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from lorgnette.data.checks.data_report import OnBadRow, load_usable
from lorgnette.data.download_journal import DATA_FILE, IMAGE_FOLDER
from lorgnette.data.formats.columns import CAPTION_NAMES, IMAGE_NAMES, is_named
from lorgnette.data.formats.records import RecordReader, list_formats
from lorgnette.data.portable_records import ANY_PROMPT, to_record
from lorgnette.data.row_location import EMPTY_CAPTION, ColumnChoice, ReadOptions, Row, RowCounter
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_folder
from lorgnette.types import Example, Finding, Problem

SOURCE = Path("the rows in memory")
"""Named as the file of these rows in errors."""
_MISSING = ("NAType", "NaTType")
"""Types of an empty cell in pandas, besides None and NaN."""
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """path: the data file. problems: rows left out (on_bad_row="skip"). remarks: such as keys that are not read."""

    path: Path
    num_rows: int
    problems: tuple[Problem, ...]
    remarks: tuple[Finding, ...]


def is_in_memory(data: object) -> bool:
    """Whether it is rows, not the name of a file."""
    return not isinstance(data, str | Path) and not hasattr(data, "__fspath__")


def write_rows(
    rows: Any,
    folder: Path,
    *,
    columns: ColumnChoice | None = None,
    on_bad_row: OnBadRow = "error",
    needs_answer: bool = False,
    on_progress: Callable[[int], None] = lambda count: None,
) -> WrittenRows:
    """Write the rows into the new folder, all or nothing. on_progress(1) is called after each row.

    columns: those with images and captions; default: recognized by type and name. needs_answer: also refuse
    a row that has only a question. Raises UsageError for what is no rows and for a folder that exists, LorgnetteError
    that lists the rows that cannot be used.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError("the output folder exists", where=str(folder), hint="name a new folder")
    records = _list_records(rows)
    with atomic_folder(folder) as temporary:
        images = Path(os.path.abspath(temporary / IMAGE_FOLDER))
        read = _read_rows(records, images, columns or ColumnChoice(), needs_answer, on_progress)
        result = load_usable(read, on_bad_row=on_bad_row, source=SOURCE, needs_answer=needs_answer)

        def name_image(path: Path) -> str:
            return f"{IMAGE_FOLDER}/{path.name}" if path.parent == images else str(path)

        with (temporary / DATA_FILE).open("w", encoding="utf-8", newline="") as file:
            for example in result.examples:
                file.write(json.dumps(to_record(example, name_image), ensure_ascii=False) + "\n")
    return WrittenRows(folder / DATA_FILE, len(result.examples), tuple(result.problems), tuple(result.remarks))


def encode_image(image: PIL.Image.Image | np.ndarray) -> bytes:
    """The image's pixels without loss, with what says how to show them. Raises LorgnetteError for pixels that no
    format holds."""
    image = image if isinstance(image, PIL.Image.Image) else _read_array(np.asarray(image))
    content = BytesIO()
    try:
        if image.mode in _PNG_MODES:
            # Fast: it is read once. PNG keeps the color profile and the transparency by itself.
            image.save(content, "PNG", compress_level=1, exif=image.getexif())
        else:
            image.save(content, "TIFF", exif=image.getexif(), icc_profile=image.info.get("icc_profile"))
    except (OSError, ValueError, TypeError, KeyError, SyntaxError) as error:
        message = f"an image of the mode {image.mode} cannot be written: {error}"
        raise LorgnetteError(message, hint="convert it: image.convert('RGB')") from error
    return content.getvalue()


def _list_records(rows: Any) -> Iterator[Any]:
    """The rows one by one. Raises UsageError for what is no rows."""
    hint = 'give a list of dicts, such as [{"image": image, "caption": "a cat"}], a DataFrame or a Dataset'
    if hasattr(rows, "to_dict") and hasattr(rows, "itertuples"):  # a DataFrame of pandas
        return iter(rows.to_dict("records"))
    if isinstance(rows, Mapping):
        names = ", ".join(map(repr, list(rows)[:4]))
        where = f"a {type(rows).__name__} with {names}"
        if all(hasattr(value, "features") for value in rows.values()):  # a DatasetDict
            hint = f"choose one of its splits, such as data[{next(iter(rows), 'train')!r}]"
        raise UsageError("one object, not rows", where=where, hint=hint)
    if isinstance(rows, str | bytes | PIL.Image.Image | np.ndarray) or not (
        hasattr(rows, "__iter__") or hasattr(rows, "__getitem__")
    ):
        raise UsageError("no rows", where=f"a {type(rows).__name__}", hint=hint)
    return iter(rows)


def _read_rows(
    records: Iterable[Any],
    images: Path,
    columns: ColumnChoice,
    needs_answer: bool,
    on_progress: Callable[[int], None],
) -> Iterator[Row]:
    options = ReadOptions(ANY_PROMPT, images_to=images, columns=columns, trim=False)
    counter, read = RowCounter(SOURCE, options, Path.cwd()), RecordReader(options, str(SOURCE))

    def is_caption(name: str) -> bool:
        return name == columns.caption or is_named(name, CAPTION_NAMES)

    def read_record(record: object, location: Any) -> list[Example]:
        if not isinstance(record, Mapping):
            hint = 'write {"image": image, "caption": "a cat"}'
            raise LorgnetteError(f"the row is a {type(record).__name__}, not a dict", hint=hint)
        values = {str(name): _convert(value, str(name)) for name, value in record.items()}
        cells = {name: value for name, value in values.items() if value is not None}
        is_captions = not list_formats(tuple(cells))
        is_empty = not any(map(is_caption, cells)) and any(map(is_caption, values))
        examples = [] if is_captions and is_empty else read(cells, location)
        is_question = needs_answer and any(example.turns[-1].role == "user" for example in examples)
        if is_captions and (is_empty or is_question):
            raise LorgnetteError(EMPTY_CAPTION, hint="write one, or remove the row")
        return examples

    for record in records:
        location = counter.next()
        yield from location.try_read(partial(read_record, record, location))
        on_progress(1)


def _convert(value: Any, name: str) -> Any:
    """A value as a parquet file has it: an image is {"bytes", "path"}, an empty cell None."""
    if isinstance(value, PIL.Image.Image) or (isinstance(value, np.ndarray) and _has_pixels(value, name)):
        return {"bytes": encode_image(value), "path": None}
    match value:
        case np.ndarray() | np.generic():
            return _convert(value.tolist(), name)
        case Mapping():
            return {str(key): _convert(item, str(key)) for key, item in value.items()}
        case list() | tuple():
            return [_convert(item, name) for item in value]
        case str() | bytes() | bool() | int() | float() | None:
            return None if _is_nan(value) else value
        case _ if hasattr(value, "__fspath__") or type(value).__name__ in _MISSING:
            return str(value) if hasattr(value, "__fspath__") else None
    hint = "give an image as a PIL.Image, an array of uint8, bytes or a path, and a text as a str"
    raise LorgnetteError(f"{name!r} is a {type(value).__name__}", hint=hint)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _has_pixels(array: np.ndarray, name: str) -> bool:
    """Whether it is meant as an image; then another type than uint8 is an error. name: its key."""
    return array.ndim > 1 and (array.dtype == np.uint8 or array.ndim == 3 or is_named(name, IMAGE_NAMES))


def _read_array(pixels: np.ndarray) -> PIL.Image.Image:
    """The image of an array [height, width] or [height, width, channels]. Raises LorgnetteError for another."""
    if pixels.dtype != np.uint8:
        message, hint = f"an array is no image: its dtype is {pixels.dtype}", "give uint8, with values from 0 to 255"
        raise LorgnetteError(message, hint=hint)
    try:
        return PIL.Image.fromarray(pixels)
    except (TypeError, ValueError) as error:
        message, hint = f"an array of the shape {list(pixels.shape)} is no image", "give [height, width, 3]"
        raise LorgnetteError(message, hint=hint) from error
