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

from lorgnette.data import rows
from lorgnette.data.formats import placeholders
from lorgnette.data.text_files import kind
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_INLINE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


def query(record: Mapping[str, Any], place: rows.Place) -> Example:
    """ms-swift's query and response."""
    return _example(record, place, (record.get("query"), record.get("response")), ("query", "response", "history"))


def alpaca(record: Mapping[str, Any], place: rows.Place) -> Example:
    """LLaMA-Factory's instruction, input and output; the input is more of the question."""
    asked = [rows.string(record.get("instruction"), "'instruction'")]
    if record.get("input"):
        asked.append(rows.string(record["input"], "'input'"))
    said = "\n".join(part for part in asked if part), record.get("output")
    return _example(record, place, said, ("instruction", "input", "output", "history"))


def conversation(record: Mapping[str, Any], place: rows.Place) -> Example:
    """ms-swift's pairs of human and assistant."""
    pairs = rows.objects(record.get("conversation"), "conversation")
    drafts = [draft for pair in pairs for draft in _said(pair.get("human"), pair.get("assistant"), place)]
    return placeholders.example(record, place, drafts, known=("conversation",))


def _example(
    record: Mapping[str, Any], place: rows.Place, last: tuple[object, object], known: tuple[str, ...]
) -> Example:
    pairs = [*_history(record.get("history")), last]
    drafts = [draft for question, answer in pairs for draft in _said(question, answer, place)]
    return placeholders.example(record, place, drafts, known=known)


def _history(value: object) -> list[tuple[object, object]]:
    if value is None:
        return []
    if not isinstance(value, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in value):
        raise LorgnetteError(
            f"'history' is {kind(value)}, not a list of pairs", remedy='write it as [["question", "answer"], …]'
        )
    return [(question, answer) for question, answer in value]


def _said(question: object, answer: object, place: rows.Place) -> Iterator[placeholders.Draft]:
    role, parts = placeholders.draft("user", rows.string(question, "the question"))
    shown: list[placeholders.Part] = []
    for part in parts:
        shown += _inline(part, place) if isinstance(part, str) else [part]
    yield role, shown
    yield "assistant", [rows.string(answer, "the answer")]


def _inline(text: str, place: rows.Place) -> list[placeholders.Part]:
    """Text and paths by turns, as `re.split` gives them."""
    pieces = _INLINE.split(text)
    return [place.picture(piece, "<img>") if number % 2 else piece for number, piece in enumerate(pieces)]
