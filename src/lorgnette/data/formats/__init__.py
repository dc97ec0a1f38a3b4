"""The data formats, one module each: its reader and, if it can be exported, its writer.

RECORD_FORMATS  a record of a .json, .jsonl or .parquet, recognized by a key
OBJECT_FORMATS  a .json that is one object, recognized by its keys
FILE_FORMATS    a file, recognized by its suffix; its rows are interpreted by `read_pending`
EXPORTERS       what `export` and `prepare` write, by name
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from lorgnette.data.formats import (
    coco,
    conversations,
    csv,
    excel,
    folder,
    llama_factory,
    llava,
    messages,
    openai,
    parquet,
)
from lorgnette.data.formats.json_records import stream_list, stream_records
from lorgnette.data.formats.records import RECORD_FORMATS, RecordReader, read_record
from lorgnette.data.formats.webdataset import read_webdataset, stream_webdataset
from lorgnette.data.formats.zip_archive import read_zip
from lorgnette.data.row_location import PendingRow, ReadOptions, Row, RowCounter, read_pending
from lorgnette.data.text_files import read_json
from lorgnette.types import Example

__all__ = ["EXPORTERS", "FILE_FORMATS", "RECORD_FORMATS", "ExportFormat", "Exporter", "read_record", "stream_rows"]
ExportFormat = Literal["json", "csv", "llava", "llama-factory", "swift", "openai"]
OBJECT_FORMATS = (
    (coco.is_official, coco.read_official),
    (coco.is_karpathy, coco.read_karpathy),
    (llama_factory.is_dataset_info, llama_factory.read_dataset_info),
)


def _stream_json(path: Path, options: ReadOptions) -> Iterator[PendingRow | Row]:
    value = read_json(path)
    for is_format, read in OBJECT_FORMATS if isinstance(value, dict) else ():
        if is_format(value):
            yield from read(value, path, options.require_no_columns(path))
            return
    counter = RowCounter(path, options.require_no_name(path))
    yield from stream_list(value, counter, RecordReader(options, str(path)))


def _stream_jsonl(path: Path, options: ReadOptions) -> Iterator[PendingRow | Row]:
    counter = RowCounter(path, options.require_no_name(path))
    return stream_records(path, counter, RecordReader(options, str(path)))


FileReader = Callable[[Path, ReadOptions], Iterator[PendingRow | Row]]
_TEXT_FORMATS: dict[str, FileReader] = {
    ".csv": csv.stream_csv,
    ".tsv": csv.stream_csv,
    ".json": _stream_json,
    ".jsonl": _stream_jsonl,
}
FILE_FORMATS: dict[str, FileReader] = {
    **_TEXT_FORMATS,
    ".parquet": parquet.read_parquet,
    ".tar": read_webdataset,
    ".zip": lambda path, options: read_zip(path, options, _TEXT_FORMATS),
    ".txt": csv.stream_csv,  # Excel's "Unicode text"
    ".xlsx": excel.read_excel,
    **dict.fromkeys(excel.OTHER_SUFFIXES, excel.refuse_spreadsheet),
}


def stream_rows(
    path: Path, options: ReadOptions, start: tuple[int, int] = (0, 0)
) -> Iterator[tuple[tuple[int, int], list[Row]]]:
    """(position, the examples or the problem of one row) of a file or folder, from the position `start` on.

    A position is (where the next row begins, number of rows before it). A file that is read in place, over HTTP, is
    not read before `start`; a table is.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        for number, examples in parquet.stream_parquet(path, options, start=start[0]):
            yield (number + 1, number + 1), examples
    elif suffix == ".tar":
        yield from stream_webdataset(path, options, start)
    else:
        read = folder.read_folder if path.is_dir() else FILE_FORMATS[suffix]
        by_row = groupby(read_pending(read(path, options)), key=lambda row: row.row)
        for number, (_, group) in enumerate(by_row, start=1):
            examples = list(group)
            if number > start[1]:
                yield (number, number), examples


@dataclass(frozen=True, slots=True)
class Exporter:
    """to_record: an example and the prompt → a record that `read_record` reads back.

    embed_images: the record → the record in the file, which may hold the images themselves.
    """

    suffix: str
    to_record: Callable[[Example, str], dict[str, Any]]
    embed_images: Callable[[dict[str, Any]], dict[str, Any]] = dict
    has_ids: bool = True


EXPORTERS: dict[ExportFormat, Exporter] = {
    "json": Exporter(".json", lambda example, prompt: conversations.to_record(example)),
    "csv": Exporter(".csv", csv.to_record, has_ids=False),
    "llava": Exporter(".json", lambda example, prompt: llava.to_record(example)),
    "llama-factory": Exporter(".json", lambda example, prompt: llama_factory.to_record(example)),
    "swift": Exporter(".jsonl", lambda example, prompt: messages.to_record(example, {"loss": False})),
    "openai": Exporter(".jsonl", lambda example, prompt: openai.to_record(example), openai.embed_images, has_ids=False),
}
