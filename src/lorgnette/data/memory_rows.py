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
from lorgnette.data.formats.records import RecordReader
from lorgnette.data.portable_records import ANY_PROMPT, to_record
from lorgnette.data.row_location import ColumnChoice, ReadOptions, Row, RowCounter
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
    on_progress: Callable[[int], None] = lambda count: None,
) -> WrittenRows:
    """Write the rows into the new folder, all or nothing. on_progress(1) is called after each row.

    columns: those with images and captions; default: recognized by type and name. Raises UsageError for what is no
    rows and for a folder that exists, LorgnetteError that lists the rows that cannot be used.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError("the output folder exists", where=str(folder), hint="name a new folder")
    records = _list_records(rows)
    with atomic_folder(folder) as temporary:
        images = Path(os.path.abspath(temporary / IMAGE_FOLDER))
        read = _read_rows(records, images, columns or ColumnChoice(), on_progress)
        result = load_usable(read, on_bad_row=on_bad_row, source=SOURCE, needs_answer=False)

        def name_image(path: Path) -> str:
            return f"{IMAGE_FOLDER}/{path.name}" if path.parent == images else str(path)

        with (temporary / DATA_FILE).open("w", encoding="utf-8", newline="") as file:
            for example in result.examples:
                file.write(json.dumps(to_record(example, name_image), ensure_ascii=False) + "\n")
    return WrittenRows(folder / DATA_FILE, len(result.examples), tuple(result.problems), tuple(result.remarks))


def encode_image(image: PIL.Image.Image | np.ndarray) -> bytes:
    """The image's pixels without loss, with what says how to show them. Raises LorgnetteError for pixels that no
    format holds."""
    image = _read_array(image) if isinstance(image, np.ndarray) else image
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
    records: Iterable[Any], images: Path, columns: ColumnChoice, on_progress: Callable[[int], None]
) -> Iterator[Row]:
    options = ReadOptions(ANY_PROMPT, images_to=images, columns=columns, trim=False)
    counter, read = RowCounter(SOURCE, options, Path.cwd()), RecordReader(options, str(SOURCE))

    def read_record(record: object, location: Any) -> list[Example]:
        if not isinstance(record, Mapping):
            hint = 'write {"image": image, "caption": "a cat"}'
            raise LorgnetteError(f"the row is a {type(record).__name__}, not a dict", hint=hint)
        values = {str(name): _convert(value, str(name)) for name, value in record.items()}
        return read({name: value for name, value in values.items() if value is not None}, location)

    for record in records:
        location = counter.next()
        yield from location.try_read(partial(read_record, record, location))
        on_progress(1)


def _convert(value: Any, name: str) -> Any:
    """A value as a parquet file has it: an image is {"bytes", "path"}, an empty cell None."""
    if isinstance(value, PIL.Image.Image) or (
        isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim > 1
    ):
        return {"bytes": encode_image(value), "path": None}
    match value:
        case np.ndarray() | np.generic():
            return _convert(value.tolist(), name)
        case Mapping():
            return {str(key): _convert(item, name) for key, item in value.items()}
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


def _read_array(pixels: np.ndarray) -> PIL.Image.Image:
    """The image of an array [height, width] or [height, width, channels]."""
    try:
        return PIL.Image.fromarray(pixels)
    except (TypeError, ValueError) as error:
        message, hint = f"an array of the shape {list(pixels.shape)} is no image", "give [height, width, 3]"
        raise LorgnetteError(message, hint=hint) from error
