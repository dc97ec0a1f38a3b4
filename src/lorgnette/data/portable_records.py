"""An example → its record in a `data.jsonl` that has its images beside it and is read with any prompt."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorgnette.data.formats import captions, objects
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Role

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
        own_objects = objects.to_objects(example)
        messages = []
        for turn in example.turns:
            parts = objects.to_placeholders(turn.parts, has_objects=bool(own_objects))
            mark = {} if turn.has_loss else {"loss": False}
            messages.append({"role": turn.role, "content": _format_content(turn.role, parts, name_image), **mark})
        return {**id_, "messages": messages, **own_objects}
    image_column = captions.IMAGE_COLUMN
    return {**id_, **record, image_column: name_image(Path(record[image_column]))}


def _format_content(
    role: Role, parts: list[str | Image], name_image: Callable[[Path], str]
) -> str | list[dict[str, str]]:
    if role != "user":
        return "".join(part for part in parts if isinstance(part, str))
    return [
        {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "image", "path": name_image(part.path)}
        for part in parts
    ]  # fmt: skip
