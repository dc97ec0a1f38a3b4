"""Parquet files: an image and a caption in columns, or conversations with their images, as on Hugging Face.

    image: {bytes, path} · caption: "a cat asleep"                      an image column and a caption column
    image: {bytes, path} · label: 3                                     an image column and a class label with names
    images: [{bytes, path}, …] · messages: [{role, content}, …]         a record of any format

A cell with an image holds its bytes, a struct {bytes, path}, or a path. Only the row groups with the wanted rows are
read, and no further than the last of them, so that the first rows of a remote file cost about their own bytes. Needs
pyarrow, which the extra `parquet` installs. Read only.
"""

import importlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.formats.columns import Column, Kind
from lorgnette.data.formats.records import RecordReader
from lorgnette.data.row_location import ReadOptions, Row, RowCounter
from lorgnette.data.text_files import parse_json
from lorgnette.errors import LorgnetteError

ROWS_PER_BATCH = 16
MIN_GROUPS, ROWS_PER_GROUP = 16, 25
"""A sample is drawn from at least 16 row groups, and from at least one group per 25 rows."""
_STREAM_BYTES = 2 << 20


def read_parquet(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Row by row, never the whole file."""
    for _, examples in stream_parquet(path, options):
        yield from examples


def stream_parquet(
    path: Path, options: ReadOptions, numbers: Sequence[int] | None = None, *, start: int = 0
) -> Iterator[tuple[int, list[Row]]]:
    """(row number from 0, its examples or its problem) of the ascending `numbers`, or of all rows from `start` on."""
    counter = RowCounter(path, options.require_no_name(path))
    with _open_parquet(path) as file:
        labels = _read_label_names(file.schema_arrow.metadata or {})
        columns = [
            Column(field.name, "label" if field.name in labels else _detect_kind(field.type))
            for field in file.schema_arrow
        ]
        read = RecordReader(options, str(path), columns)
        wanted = range(start, file.metadata.num_rows) if numbers is None else numbers
        for number, record in _read_records(file, read.names, wanted):
            counter.count = number
            location = counter.next()
            values = {name: value for name, value in record.items() if value is not None}
            for name in labels.keys() & values.keys():
                values[name] = labels[name].get(values[name], values[name])
            yield number, list(location.try_read(partial(read, values, location)))


def draw_sample(paths: Sequence[Path], count: int, seed: int) -> tuple[list[tuple[int, int]], str]:
    """((file, row number) of `count` rows in order, how they were drawn).

    Drawn in two steps, because a row group is read completely: row groups first, then rows of them. Every row is
    equally likely if the groups have one size.
    """
    groups = [(index, *span) for index, path in enumerate(paths) for span in _list_groups(path)]
    rng = random.Random(seed)
    shuffled = list(groups)
    rng.shuffle(shuffled)
    chosen: list[tuple[int, int, int]] = []
    for group in shuffled:
        is_enough = len(chosen) >= max(MIN_GROUPS, math.ceil(count / ROWS_PER_GROUP))
        if is_enough and sum(num_rows for _, _, num_rows in chosen) >= count:
            break
        chosen.append(group)
    candidates = [(index, first + row) for index, first, num_rows in sorted(chosen) for row in range(num_rows)]
    sample = sorted(rng.sample(candidates, min(count, len(candidates))))
    return sample, f"the sample is drawn from {len(chosen)} of {len(groups)} row groups"


def _list_groups(path: Path) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) of each row group."""
    with _open_parquet(path) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            yield first, num_rows
            first += num_rows


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """A pyarrow ParquetFile; whatever pyarrow raises inside names the file."""
    try:
        parquet, arrow = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
    except ImportError as error:
        hint = "pip install pyarrow"
        raise LorgnetteError("parquet files need pyarrow", where=str(path), hint=hint) from error
    try:
        with path.open("rb") as stream:
            yield parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_STREAM_BYTES)
    except (arrow.ArrowException, OSError) as error:
        message = f"the parquet file cannot be read: {' '.join(str(error).split())[:160]}"
        raise LorgnetteError(message, where=str(path), hint="get it again, or take another file") from error


def _read_label_names(metadata: Mapping[bytes, bytes]) -> dict[str, dict[int, str]]:
    """Column → number → name, for the class labels that `datasets` describes in the file's metadata."""
    try:
        features = parse_json(metadata.get(b"huggingface", b"{}"))["info"]["features"].items()
        labels = [(column, feature["names"]) for column, feature in features if feature.get("_type") == "ClassLabel"]
        return {column: dict(enumerate(map(str, names))) for column, names in labels}
    except (LorgnetteError, KeyError, TypeError, AttributeError):  # of another tool: then the numbers are no labels
        return {}


def _read_records(
    file: Any, names: Sequence[str] | None, numbers: Sequence[int]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number, record) of the ascending `numbers`. A row group is read up to the last wanted row."""
    position, first = 0, 0
    for group in range(file.metadata.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        wanted = set()
        while position < len(numbers) and numbers[position] < end:
            wanted.add(numbers[position])
            position += 1
        number = first
        for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=names) if wanted else ():
            for record in batch.to_pylist():
                if number in wanted:
                    wanted.remove(number)
                    yield number, record
                number += 1
            if not wanted:
                break
        first = end


def _detect_kind(type_: Any) -> Kind:
    types = importlib.import_module("pyarrow.types")
    if types.is_dictionary(type_):
        return _detect_kind(type_.value_type)
    if types.is_list(type_) or types.is_large_list(type_):
        item = type_.value_type
        has_text = types.is_struct(item) and any(item.get_field_index(n) >= 0 for n in ("raw", "caption", "text"))
        return "texts" if has_text or _detect_kind(item) == "text" else "other"
    if types.is_struct(type_):
        return "image" if type_.get_field_index("bytes") >= 0 else "other"
    if types.is_binary(type_) or types.is_large_binary(type_):
        return "bytes"
    return "text" if types.is_string(type_) or types.is_large_string(type_) else "other"
