"""LLaVA's JSON ↔ Example: "conversations" of human and gpt, `<image>` in the text, paths under "image".

    {"id": "1", "image": "cat.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}

The tutorial's format has the same keys; an image beside them marks this one. qwen-vl-finetune, LLaMA-Factory ("images")
and ms-swift accept it too. Knows nothing about files of records.
"""

from collections.abc import Mapping
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import conversations, objects, placeholders
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_ROLE_NAMES = {"user": "human", "assistant": "gpt"}


def read_record(record: Mapping[str, Any], location: RowLocation) -> Example:
    """The record's example."""
    items = conversations.read_items(record)
    drafts = [placeholders.split_placeholders(item.role, item.text, item.has_loss) for item in items]
    unread_keys = fields.join_keys(*(item.unread_keys for item in items))
    read_keys = ("conversations",)
    return placeholders.build_example(record, location, drafts, read_keys=read_keys, unread_keys=unread_keys)


def to_record(example: Example) -> dict[str, Any]:
    """The record. LLaVA's own code expects a single image as text, and has no system turn."""
    if any(turn.role == "system" for turn in example.turns):
        raise LorgnetteError("LLaVA's format has no system turn", hint="use another format, or remove the system turn")
    objects.require_no_boxes(example, "LLaVA's format")
    texts, paths, _ = placeholders.format_turns(example)
    images = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    turns = [{"from": _ROLE_NAMES[role], "value": text} for role, text in texts]
    return {"id": example.id, **images, "conversations": turns}
