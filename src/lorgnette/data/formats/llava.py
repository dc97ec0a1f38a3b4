"""LLaVA's JSON ↔ Example: "conversations" from human and gpt, `<image>` in the text, paths under "image".

    {"id": "1", "image": "cat.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

The same keys as the tutorial's form; "image" or "images" beside them says that it is this one. qwen-vl-finetune,
LLaMA-Factory ("images") and ms-swift take it too. Knows nothing about files of records.
"""

from collections.abc import Mapping
from typing import Any

from lorgnette.data import rows
from lorgnette.data.formats import conversations, placeholders
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_WRITTEN = {"user": "human", "assistant": "gpt"}


def example(record: Mapping[str, Any], place: rows.Place) -> Example:
    """One record read."""
    said = rows.objects(record.get("conversations"), "conversations")
    drafts = [
        placeholders.draft(
            conversations.said_by(item, number), rows.string(item.get("value"), f"turn {number}'s 'value'")
        )
        for number, item in enumerate(said, start=1)
    ]
    return placeholders.example(record, place, drafts, known=("conversations",))


def written(example_: Example) -> dict[str, Any]:
    """The record; LLaVA's own code reads a lone picture as text, and knows no system turn."""
    if any(turn.role == "system" for turn in example_.turns):
        raise LorgnetteError("LLaVA's form has no system turn", remedy="take another form, or remove the system turn")
    said, paths = placeholders.written(example_)
    shown = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    return {
        "id": example_.id,
        **shown,
        "conversations": [{"from": _WRITTEN[role], "value": text} for role, text in said],
    }
