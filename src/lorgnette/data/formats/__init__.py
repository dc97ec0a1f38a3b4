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

from lorgnette.data import rows
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
from lorgnette.data.text_files import json_file
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

To = Literal["json", "csv", "llava", "llama-factory", "swift", "openai"]


def _conversation(record: Mapping[str, Any], place: rows.Place) -> Example:
    """The tutorial's, or LLaVA's where pictures stand beside the turns and not in them."""
    beside = "image" in record or "images" in record
    return llava.example(record, place) if beside else conversations.example(record, place)


RECORDS: dict[str, Callable[[Mapping[str, Any], rows.Place], Example]] = {
    "conversations": _conversation,
    "messages": messages.example,
    "query": queries.query,
    "instruction": queries.alpaca,
    "conversation": queries.conversation,
}
WHOLE: tuple[
    tuple[
        Callable[[Mapping[str, Any]], bool],
        Callable[[Mapping[str, Any], Path, rows.Asked], Iterator[rows.Row]],
    ],
    ...,
] = (
    (coco.is_official, coco.official),
    (coco.is_karpathy, coco.karpathy),
    (llama_factory.is_info, llama_factory.examples),
)


def examples(record: Mapping[str, Any], place: rows.Place) -> list[Example]:
    """A record of any form."""
    forms = [key for key in RECORDS if key in record]
    if len(forms) == 1:
        return [RECORDS[forms[0]](record, place)]
    if not forms and any(key in record for key in captions.PICTURE):
        return captions.examples(record, place)
    found = ", ".join(repr(key) for key in list(record)[:8]) or "no key at all"
    raise LorgnetteError(
        f"the row has both {forms[0]!r} and {forms[1]!r}" if forms else f"the row has {found}",
        remedy=f"give it one of {', '.join(map(repr, RECORDS))}, or 'image_path' and 'caption'",
    )


def _json(path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    value = json_file(path)
    if isinstance(value, dict):
        for is_it, read in WHOLE:
            if is_it(value):
                yield from read(value, path, asked)
                return
    yield from json_records.listed(value, rows.places(path, asked.unnamed(path)), examples)


def _jsonl(path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    return json_records.examples(path, rows.places(path, asked.unnamed(path)), examples)


FILES: dict[str, Callable[[Path, rows.Asked], Iterator[rows.Row]]] = {
    ".csv": csv.examples,
    ".json": _json,
    ".jsonl": _jsonl,
    ".tar": webdataset.examples,
}


@dataclass(frozen=True, slots=True)
class Export:
    """written: an example's record, which `examples` reads back; embedded: what a record becomes in the file."""

    suffix: str
    written: Callable[[Example, str], dict[str, Any]]
    embedded: Callable[[dict[str, Any]], dict[str, Any]] = dict
    keeps_ids: bool = True


EXPORTS: dict[To, Export] = {
    "json": Export(".json", lambda example, prompt: conversations.written(example)),
    "csv": Export(".csv", csv.written, keeps_ids=False),
    "llava": Export(".json", lambda example, prompt: llava.written(example)),
    "llama-factory": Export(".json", lambda example, prompt: messages.written(example)),
    "swift": Export(".jsonl", lambda example, prompt: messages.written(example)),
    "openai": Export(".jsonl", lambda example, prompt: openai.written(example), openai.embedded, keeps_ids=False),
}
