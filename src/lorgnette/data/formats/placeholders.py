"""Texts with `<image>` for the next of a list of images ↔ turns: common to LLaVA, TRL, ms-swift and LLaMA-Factory.

Only the user's `<image>` is a placeholder; elsewhere it is text, and nothing else is special: `<|im_end|>` is text
everywhere. Texts and images keep their order and are not changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorgnette.data import fields
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.data.row_location import RowLocation
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Role, Turn

IMAGE_PLACEHOLDER = "<image>"
_PLACEHOLDERS = (IMAGE_PLACEHOLDER, "<video>", "<audio>")
READ_KEYS = ("image", "images", "system")
_REJECTED_KEYS = ("rejected", "rejected_response", "rejected_messages", "rejected_images")
UNREAD_KEYS = ("video", "videos", "audio", "audios", "objects", "tools", "chosen", *_REJECTED_KEYS)
"""Keys of these formats with training content that is not read here."""


class NextImage:
    """Stands for the next image until the images are assigned."""


Part = str | Image | type[NextImage]
DraftTurn = tuple[Role, list[Part]]


def split_placeholders(role: Role, text: str) -> DraftTurn:
    if role != "user":
        return role, [text]
    first, *others = text.split(IMAGE_PLACEHOLDER)
    return role, [first, *(part for other in others for part in (NextImage, other))]


def build_example(
    record: Mapping[str, Any], location: RowLocation, drafts: list[DraftTurn], *, read_keys: Sequence[str]
) -> Example:
    """The record's conversation: "system" first, the images under "image" or "images" in the placeholders."""
    fields.reject_unread_keys(record, ("id", *read_keys, *READ_KEYS), UNREAD_KEYS)
    if (system := record.get("system")) not in (None, ""):
        drafts = [("system", [fields.require_string(system, "'system'")]), *drafts]
    keys = [key for key in ("image", "images") if record.get(key) not in (None, "", [])]
    if len(keys) > 1:
        raise LorgnetteError("the row has both 'image' and 'images'", hint="keep one")
    items = record[keys[0]] if keys else []
    items = [items] if isinstance(items, str | dict | bytes) else items
    if not isinstance(items, list):
        raise LorgnetteError(f"{keys[0]!r} is {describe_type(items)}, not a list of paths", hint="write ['…', '…']")
    images = [location.resolve_image(item, f"image {number}") for number, item in enumerate(items, start=1)]
    turns = tuple(_fill_placeholders(drafts, images))
    check_conversation(turns)
    return Example(fields.read_id(record, location.id), turns, location.source, location.row)


def _fill_placeholders(drafts: list[DraftTurn], images: list[Image]) -> Iterator[Turn]:
    """Each placeholder takes the next image. Without any, the images go before the text of the only user turn."""
    num_placeholders = sum(part is NextImage for _, parts in drafts for part in parts)
    user_turns = [parts for role, parts in drafts if role == "user"]
    has_own_images = any(isinstance(part, Image) for part in user_turns[0]) if user_turns else False
    if images and not num_placeholders and len(user_turns) == 1 and not has_own_images:
        user_turns[0][:0] = images
    elif num_placeholders != len(images):
        message = f"{num_placeholders} × {IMAGE_PLACEHOLDER} in the user's text, but {len(images)} in 'images'"
        raise LorgnetteError(message, hint=f"write one {IMAGE_PLACEHOLDER} for each image, where it belongs")
    queue = iter(images)
    for role, parts in drafts:
        yield Turn(role, merge_parts(next(queue) if isinstance(part, type) else part for part in parts))


def format_turns(example: Example) -> tuple[list[tuple[Role, str]], list[str]]:
    """(role, text with placeholders) per turn, and the images' paths in order."""
    texts: list[tuple[Role, str]] = []
    for turn in example.turns:
        own_texts = [part for part in turn.parts if isinstance(part, str)]
        if matches := [word for word in _PLACEHOLDERS if any(word in text for text in own_texts)]:
            message = f"a text contains {matches[0]}, which is a placeholder in this format"
            raise LorgnetteError(message, hint="export as json or openai, which keep it as text, or remove it")
        with_placeholders = (IMAGE_PLACEHOLDER if isinstance(part, Image) else part for part in turn.parts)
        texts.append((turn.role, "".join(with_placeholders)))
    return texts, [str(image.path) for image in example.images]
