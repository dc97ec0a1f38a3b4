"""An example → its record in a `data.jsonl` that has its images beside it and is read with any prompt."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorgnette.data.formats import captions
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Turn

ANY_PROMPT = "\ue000prompt\ue000"
"""Stands for the prompt of captions while rows are read for such a file."""
_DEFAULT_ID = re.compile(r"identity_\d+(_\d+)?")


def to_record(example: Example, name_image: Callable[[Path], str]) -> dict[str, Any]:
    """The example as image and caption, or as messages. It was read with ANY_PROMPT.

    name_image: an image's path → the path in the record, relative to the file.
    """
    id_ = {} if _DEFAULT_ID.fullmatch(example.id) else {"id": example.id}
    try:
        record = captions.to_record(example, ANY_PROMPT)
    except LorgnetteError:
        marks = [{} if turn.has_loss else {"loss": False} for turn in example.turns]
        turns = zip(example.turns, marks, strict=True)
        messages = [{"role": turn.role, "content": _list_parts(turn, name_image), **mark} for turn, mark in turns]
        return {**id_, "messages": messages}
    image_column = captions.IMAGE_COLUMN
    return {**id_, **record, image_column: name_image(Path(record[image_column]))}


def _list_parts(turn: Turn, name_image: Callable[[Path], str]) -> str | list[dict[str, str]]:
    if turn.role != "user":
        return turn.text
    return [
        {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "image", "path": name_image(part.path)}
        for part in turn.parts
    ]  # fmt: skip
