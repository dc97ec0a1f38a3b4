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

from lorgnette.data import fields, records
from lorgnette.data.forms import (
    captions,
    coco,
    conversations,
    llama_factory,
    llava,
    messages,
    openai,
    queries,
    shards,
    table,
)
from lorgnette.data.text import json_file
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

To = Literal["json", "csv", "llava", "llama-factory", "swift", "openai"]


def _conversation(record: Mapping[str, Any], place: fields.Place) -> Example:
    """The tutorial's, or LLaVA's where pictures stand beside the turns and not in them."""
    beside = "image" in record or "images" in record
    return llava.example(record, place) if beside else conversations.example(record, place)


RECORDS: dict[str, Callable[[Mapping[str, Any], fields.Place], Example]] = {
    "conversations": _conversation,
    "messages": messages.example,
    "query": queries.query,
    "instruction": queries.alpaca,
    "conversation": queries.conversation,
}
WHOLE: tuple[
    tuple[
        Callable[[Mapping[str, Any]], bool],
        Callable[[Mapping[str, Any], Path, fields.Asked], Iterator[fields.Row]],
    ],
    ...,
] = (
    (coco.is_official, coco.official),
    (coco.is_karpathy, coco.karpathy),
    (llama_factory.is_info, llama_factory.examples),
)


def examples(record: Mapping[str, Any], place: fields.Place) -> list[Example]:
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


def _json(path: Path, asked: fields.Asked) -> Iterator[fields.Row]:
    value = json_file(path)
    if isinstance(value, dict):
        for is_it, read in WHOLE:
            if is_it(value):
                yield from read(value, path, asked)
                return
    yield from records.listed(value, fields.places(path, asked.unnamed(path)), examples)


def _jsonl(path: Path, asked: fields.Asked) -> Iterator[fields.Row]:
    return records.examples(path, fields.places(path, asked.unnamed(path)), examples)


FILES: dict[str, Callable[[Path, fields.Asked], Iterator[fields.Row]]] = {
    ".csv": table.examples,
    ".json": _json,
    ".jsonl": _jsonl,
    ".tar": shards.examples,
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
    "csv": Export(".csv", table.written, keeps_ids=False),
    "llava": Export(".json", lambda example, prompt: llava.written(example)),
    "llama-factory": Export(".json", lambda example, prompt: messages.written(example)),
    "swift": Export(".jsonl", lambda example, prompt: messages.written(example)),
    "openai": Export(".jsonl", lambda example, prompt: openai.written(example), openai.embedded, keeps_ids=False),
}
