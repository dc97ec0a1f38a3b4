"""The forms that data comes in: one module each, what reads it and what writes it beside each other.

RECORDS  a record of a .json or .jsonl, recognised by a key
WHOLE    a .json that is one object, recognised by its keys
FILES    a file, recognised by its suffix
EXPORTS  what `export` and `prepare` write, by name
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorgnette.data import row_location
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
from lorgnette.data.text_files import read_json
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

ExportFormat = Literal["json", "csv", "llava", "llama-factory", "swift", "openai"]


def _read_conversation(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """The tutorial's, or LLaVA's where pictures stand beside the turns and not in them."""
    beside = "image" in record or "images" in record
    return llava.read_record(record, location) if beside else conversations.read_record(record, location)


RECORD_FORMATS: dict[str, Callable[[Mapping[str, Any], row_location.RowLocation], Example]] = {
    "conversations": _read_conversation,
    "messages": messages.read_record,
    "query": queries.read_query,
    "instruction": queries.read_alpaca,
    "conversation": queries.read_conversation,
}
OBJECT_FORMATS: tuple[
    tuple[
        Callable[[Mapping[str, Any]], bool],
        Callable[[Mapping[str, Any], Path, row_location.ReadOptions], Iterator[row_location.Row]],
    ],
    ...,
] = (
    (coco.is_official, coco.read_official),
    (coco.is_karpathy, coco.read_karpathy),
    (llama_factory.is_dataset_info, llama_factory.read_dataset_info),
)


def read_record(record: Mapping[str, Any], location: row_location.RowLocation) -> list[Example]:
    """A record of any form."""
    forms = [key for key in RECORD_FORMATS if key in record]
    if len(forms) == 1:
        return [RECORD_FORMATS[forms[0]](record, location)]
    if not forms and any(key in record for key in captions.IMAGE_COLUMNS):
        return captions.read_record(record, location)
    found = ", ".join(repr(key) for key in list(record)[:8]) or "no key at all"
    raise LorgnetteError(
        f"the row has both {forms[0]!r} and {forms[1]!r}" if forms else f"the row has {found}",
        hint=f"give it one of {', '.join(map(repr, RECORD_FORMATS))}, or 'image_path' and 'caption'",
    )


def _read_json(path: Path, options: row_location.ReadOptions) -> Iterator[row_location.Row]:
    value = read_json(path)
    if isinstance(value, dict):
        for is_it, read in OBJECT_FORMATS:
            if is_it(value):
                yield from read(value, path, options)
                return
    yield from json_records.read_list(
        value, row_location.create_row_counter(path, options.require_no_name(path)), read_record
    )


def _read_jsonl(path: Path, options: row_location.ReadOptions) -> Iterator[row_location.Row]:
    return json_records.read_records(
        path, row_location.create_row_counter(path, options.require_no_name(path)), read_record
    )


FILE_FORMATS: dict[str, Callable[[Path, row_location.ReadOptions], Iterator[row_location.Row]]] = {
    ".csv": csv.read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".tar": webdataset.read_shard,
}


@dataclass(frozen=True, slots=True)
class Exporter:
    """written: an example's record, which `examples` reads back; embedded: what a record becomes in the file."""

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
