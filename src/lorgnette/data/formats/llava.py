"""LLaVA's JSON ↔ Example: "conversations" from human and gpt, `<image>` in the text, paths under "image".

    {"id": "1", "image": "cat.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

The same keys as the tutorial's form; "image" or "images" beside them says that it is this one. qwen-vl-finetune,
LLaMA-Factory ("images") and ms-swift take it too. Knows nothing about files of records.
"""

from collections.abc import Mapping
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.formats import conversations, placeholders
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_ROLE_NAMES = {"user": "human", "assistant": "gpt"}


def read_record(record: Mapping[str, Any], location: row_location.RowLocation) -> Example:
    """One record read."""
    said = row_location.require_objects(record.get("conversations"), "conversations")
    drafts = [
        placeholders.split_placeholders(
            conversations.read_role(item, number),
            row_location.require_string(item.get("value"), f"turn {number}'s 'value'"),
        )
        for number, item in enumerate(said, start=1)
    ]
    return placeholders.build_example(record, location, drafts, read_keys=("conversations",))


def to_record(example: Example) -> dict[str, Any]:
    """The record; LLaVA's own code reads a lone picture as text, and knows no system turn."""
    if any(turn.role == "system" for turn in example.turns):
        raise LorgnetteError("LLaVA's form has no system turn", hint="take another form, or remove the system turn")
    said, paths = placeholders.format_turns(example)
    shown = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    return {
        "id": example.id,
        **shown,
        "conversations": [{"from": _ROLE_NAMES[role], "value": text} for role, text in said],
    }
