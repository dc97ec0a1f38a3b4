"""A question, its answer and what was said before, each under a key of its own → Example.

    {"query": "<image>What?", "response": "A cat.", "history": [["Hi", "Hello"]], "images": ["cat.jpg"]}   ms-swift
    {"query": "<img>cat.jpg</img>What?", "response": "A cat."}                                    ms-swift, Qwen-VL
    {"conversation": [{"human": "What?", "assistant": "A cat."}], "images": ["cat.jpg"]}                   ms-swift
    {"instruction": "<image>What?", "input": "", "output": "A cat.", "images": ["cat.jpg"]}           LLaMA-Factory

Read only: what they hold is written as messages. Knows nothing about files of records.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.formats import placeholders
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_INLINE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


def read_query(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """ms-swift's query and response."""
    return _build_example(
        record, location, (record.get("query"), record.get("response")), ("query", "response", "history")
    )


def read_alpaca(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """LLaMA-Factory's instruction, input and output; the input is more of the question."""
    asked = [row_location.require_string(record.get("instruction"), "'instruction'")]
    if record.get("input"):
        asked.append(row_location.require_string(record["input"], "'input'"))
    said = "\n".join(part for part in asked if part), record.get("output")
    return _build_example(record, location, said, ("instruction", "input", "output", "history"))


def read_conversation(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """ms-swift's pairs of human and assistant."""
    pairs = row_location.require_objects(record.get("conversation"), "conversation")
    drafts = [draft for pair in pairs for draft in _draft_pair(pair.get("human"), pair.get("assistant"), location)]
    return placeholders.build_example(record, location, drafts, read_keys=("conversation",))


def _build_example(
    record: Mapping[str, Any],
    location: row_location.RowLocation,
    last: tuple[object, object],
    read_keys: tuple[str, ...],
) -> Example:
    pairs = [*_read_history(record.get("history")), last]
    drafts = [draft for question, answer in pairs for draft in _draft_pair(question, answer, location)]
    return placeholders.build_example(record, location, drafts, read_keys=read_keys)


def _read_history(value: object) -> list[tuple[object, object]]:
    if value is None:
        return []
    if not isinstance(value, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in value):
        raise LorgnetteError(
            f"'history' is {describe_type(value)}, not a list of pairs", hint='write it as [["question", "answer"], …]'
        )
    return [(question, answer) for question, answer in value]


def _draft_pair(
    question: object, answer: object, location: row_location.RowLocation
) -> Iterator[placeholders.DraftTurn]:
    role, parts = placeholders.split_placeholders("user", row_location.require_string(question, "the question"))
    shown: list[placeholders.Part] = []
    for part in parts:
        shown += _split_inline(part, location) if isinstance(part, str) else [part]
    yield role, shown
    yield "assistant", [row_location.require_string(answer, "the answer")]


def _split_inline(text: str, location: row_location.RowLocation) -> list[placeholders.Part]:
    """Text and paths by turns, as `re.split` gives them."""
    pieces = _INLINE.split(text)
    return [location.resolve_image(piece, "<img>") if number % 2 else piece for number, piece in enumerate(pieces)]
