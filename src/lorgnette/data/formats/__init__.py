"""The data formats, one module each: its reader and, if it can be exported, its writer.

RECORD_FORMATS  a record of a .json or .jsonl, recognized by a key
OBJECT_FORMATS  a .json that is one object, recognized by its keys
FILE_FORMATS    a file, recognized by its suffix
EXPORTERS       what `export` and `prepare` write, by name
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorgnette.data.formats import (
    captions,
    coco,
    conversations,
    csv,
    json_records,
    llama_factory,
    llava,
    messages,
    openai,
    queries,
    webdataset,
)
from lorgnette.data.row_location import ReadOptions, Row, RowLocation, create_row_counter
from lorgnette.data.text_files import read_json
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

ExportFormat = Literal["json", "csv", "llava", "llama-factory", "swift", "openai"]


def _read_conversation(record: Mapping[str, Any], location: RowLocation) -> Example:
    """The tutorial's format; LLaVA's if the images are listed beside the turns."""
    is_llava = "image" in record or "images" in record
    return llava.read_record(record, location) if is_llava else conversations.read_record(record, location)


RECORD_FORMATS: dict[str, Callable[[Mapping[str, Any], RowLocation], Example]] = {
    "conversations": _read_conversation,
    "messages": messages.read_record,
    "query": queries.read_query,
    "instruction": queries.read_alpaca,
    "conversation": queries.read_conversation,
}
OBJECT_FORMATS: tuple[
    tuple[Callable[[Mapping[str, Any]], bool], Callable[[Mapping[str, Any], Path, ReadOptions], Iterator[Row]]], ...
] = (
    (coco.is_official, coco.read_official),
    (coco.is_karpathy, coco.read_karpathy),
    (llama_factory.is_dataset_info, llama_factory.read_dataset_info),
)


def read_record(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
    """The examples of a record in any format."""
    keys = [key for key in RECORD_FORMATS if key in record]
    if len(keys) == 1:
        return [RECORD_FORMATS[keys[0]](record, location)]
    if not keys and any(key in record for key in captions.IMAGE_COLUMNS):
        return captions.read_record(record, location)
    present = ", ".join(repr(key) for key in list(record)[:8]) or "no keys"
    raise LorgnetteError(
        f"the row has both {keys[0]!r} and {keys[1]!r}" if keys else f"the row has {present}",
        hint=f"give it one of {', '.join(map(repr, RECORD_FORMATS))}, or 'image_path' and 'caption'",
    )


def _read_json(path: Path, options: ReadOptions) -> Iterator[Row]:
    value = read_json(path)
    if isinstance(value, dict):
        for is_format, read in OBJECT_FORMATS:
            if is_format(value):
                yield from read(value, path, options)
                return
    yield from json_records.read_list(value, create_row_counter(path, options.require_no_name(path)), read_record)


def _read_jsonl(path: Path, options: ReadOptions) -> Iterator[Row]:
    return json_records.read_records(path, create_row_counter(path, options.require_no_name(path)), read_record)


FILE_FORMATS: dict[str, Callable[[Path, ReadOptions], Iterator[Row]]] = {
    ".csv": csv.read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".tar": webdataset.read_shard,
}


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
    "llama-factory": Exporter(".json", lambda example, prompt: messages.to_record(example)),
    "swift": Exporter(".jsonl", lambda example, prompt: messages.to_record(example)),
    "openai": Exporter(".jsonl", lambda example, prompt: openai.to_record(example), openai.embed_images, has_ids=False),
}
