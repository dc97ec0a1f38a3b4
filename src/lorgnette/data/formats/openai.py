"""Writes OpenAI's messages with images as data URIs; `messages` reads them.

    {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,…"}}, {"type": "text", "text": "What?"}]},
      {"role": "assistant", "content": "A cat."}]}

The format has no ids. Knows nothing about files of records.
"""

import base64
from pathlib import Path
from typing import Any

from lorgnette.data.conversation import merge_parts
from lorgnette.data.formats.objects import require_no_boxes
from lorgnette.errors import LorgnetteError
from lorgnette.io.image_signature import HEAD_BYTES, detect_image_format
from lorgnette.types import Box, Example, Image


def to_record(example: Example) -> dict[str, Any]:
    """The record with paths in the places where `embed_images` puts the images."""
    require_no_boxes(example, "OpenAI's format")
    for image in example.images:
        _detect_format(image.path)
    messages = []
    for turn in example.turns:
        entries = [_format_entry(part) for part in merge_parts(turn.parts) if not isinstance(part, Box)]
        mark = {} if turn.has_loss else {"weight": 0}
        messages.append({"role": turn.role, "content": entries if turn.role == "user" else turn.text, **mark})
    return {"messages": messages}


def _format_entry(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": str(part.path)}}


def embed_images(record: dict[str, Any]) -> dict[str, Any]:
    """The record with data URIs, made row by row: the images of a whole data set do not fit into memory."""
    for message in record["messages"]:
        for entry in message["content"] if isinstance(message["content"], list) else ():
            if entry["type"] == "image_url":
                path = Path(entry["image_url"]["url"])
                content = base64.b64encode(path.read_bytes()).decode("ascii")
                entry["image_url"]["url"] = f"data:image/{_detect_format(path)};base64,{content}"
    return record


def _detect_format(path: Path) -> str:
    try:
        with path.open("rb") as file:
            name = detect_image_format(file.read(HEAD_BYTES))
    except OSError as error:
        raise LorgnetteError(f"image cannot be read: {error.strerror}", where=str(path), hint="check it") from error
    if name not in ("jpeg", "png", "gif", "webp"):
        message, hint = "the openai format accepts only JPEG, PNG, GIF and WebP", "convert it, or use another format"
        raise LorgnetteError(message, where=str(path), hint=hint)
    return name
