"""A question, its answer and the history, each under its own key → Example. Read only.

    {"query": "<image>What?", "response": "A cat.", "history": [["Hi", "Hello"]], "images": ["cat.jpg"]}   ms-swift
    {"query": "<img>cat.jpg</img>What?", "response": "A cat."}                                    ms-swift, Qwen-VL
    {"conversation": [{"human": "What?", "assistant": "A cat."}], "images": ["cat.jpg"]}                   ms-swift
    {"instruction": "<image>What?", "input": "", "output": "A cat.", "images": ["cat.jpg"]}           LLaMA-Factory

To export such rows, write them as messages. Knows nothing about files of records.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import placeholders
from lorgnette.data.row_location import RowLocation
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_INLINE = re.compile(r"<img>(.*?)</img>", re.DOTALL)


def read_query(record: Mapping[str, Any], location: RowLocation) -> Example:
    """ms-swift's query and response."""
    return _build_example(record, location, record.get("query"), "response", ("query", "response", "history"))


def read_alpaca(record: Mapping[str, Any], location: RowLocation) -> Example:
    """LLaMA-Factory's instruction, input and output; the input is appended to the instruction."""
    questions = [fields.require_string(record.get("instruction"), "'instruction'")]
    if record.get("input"):
        questions.append(fields.require_string(record["input"], "'input'"))
    question = "\n".join(text for text in questions if text)
    return _build_example(record, location, question, "output", ("instruction", "input", "output", "history"))


def read_conversation(record: Mapping[str, Any], location: RowLocation) -> Example:
    """ms-swift's pairs of human and assistant."""
    pairs = fields.require_objects(record.get("conversation"), "conversation")
    drafts: list[placeholders.DraftTurn] = []
    unread_keys: tuple[str, ...] = ()
    for number, pair in enumerate(pairs, start=1):
        owner, read_keys = f"pair {number}", ("human", "assistant", *fields.TURN_MARKS)
        keys = fields.list_unread_keys(pair, read_keys, owner=owner, prefix="conversation[].")
        unread_keys = fields.join_keys(unread_keys, keys)
        has_loss = fields.read_loss_mark(pair, "assistant", owner)
        is_open = number == len(pairs) and pair.get("assistant") is None
        drafts += _draft_pair(pair.get("human"), pair.get("assistant"), location, has_loss=has_loss, is_open=is_open)
    return placeholders.build_example(record, location, drafts, read_keys=("conversation",), unread_keys=unread_keys)


def _build_example(
    record: Mapping[str, Any], location: RowLocation, question: object, answer_key: str, read_keys: tuple[str, ...]
) -> Example:
    history = [] if not fields.has_content(record.get("history")) else record["history"]
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        message = f"'history' is {describe_type(history)}, not a list of pairs"
        raise LorgnetteError(message, hint='write it as [["question", "answer"], …]')
    drafts = [draft for earlier in history for draft in _draft_pair(earlier[0], earlier[1], location)]
    answer = record.get(answer_key)
    drafts += _draft_pair(question, answer, location, is_open=answer is None)
    return placeholders.build_example(record, location, drafts, read_keys=read_keys)


def _draft_pair(
    question: object, answer: object, location: RowLocation, *, has_loss: bool = True, is_open: bool = False
) -> Iterator[placeholders.DraftTurn]:
    """is_open: the user has the last word."""
    draft = placeholders.split_placeholders("user", fields.require_string(question, "the question"))
    with_images: list[placeholders.Part] = []
    for part in draft.parts:
        # `re.split` gives text and path in alternation.
        pieces = enumerate(_INLINE.split(part)) if isinstance(part, str) else [(0, part)]
        with_images += [location.resolve_image(piece, "<img>") if i % 2 else piece for i, piece in pieces]
    yield placeholders.DraftTurn("user", with_images)
    if not is_open:
        yield placeholders.DraftTurn("assistant", [fields.require_string(answer, "the answer")], has_loss)
