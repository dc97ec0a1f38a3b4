"""Texts with `<image>` for the next of a list of images ↔ turns: common to LLaVA, TRL, ms-swift and LLaMA-Factory.

Only the user's `<image>` is a placeholder; elsewhere it is text, and nothing else is special: `<|im_end|>` is text
everywhere. Texts and images keep their order and are not changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lorgnette.data import fields
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.data.formats import objects
from lorgnette.data.row_location import RowLocation
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Role, Turn

IMAGE_PLACEHOLDER = "<image>"
_PLACEHOLDERS = (IMAGE_PLACEHOLDER, "<video>", "<audio>")
READ_KEYS = ("id", "image", "images", "system", "objects")


class NextImage:
    """Stands for the next image until the images are assigned."""


Part = str | Image | type[NextImage]


class DraftTurn(NamedTuple):
    """A turn whose images are not assigned yet."""

    role: Role
    parts: list[Part]
    has_loss: bool = True


def split_placeholders(role: Role, text: str, has_loss: bool = True) -> DraftTurn:
    if role != "user":
        return DraftTurn(role, [text], has_loss)
    first, *others = text.split(IMAGE_PLACEHOLDER)
    return DraftTurn(role, [first, *(part for other in others for part in (NextImage, other))], has_loss)


def build_example(
    record: Mapping[str, Any],
    location: RowLocation,
    drafts: list[DraftTurn],
    *,
    read_keys: Sequence[str],
    unread_keys: tuple[str, ...] = (),
    alternates: bool = True,
) -> Example:
    """The record's conversation: "system" first, the record's images and boxes in the placeholders.

    read_keys: keys of the record that were read for the drafts; unread_keys: keys of its turns that were not.
    alternates: as of `check_conversation`.
    """
    image_key = _find_image_key(record, drafts)
    keys = (*read_keys, *READ_KEYS, *([image_key] if image_key in fields.IMAGE_KEYS else []))
    unread_keys = fields.join_keys(fields.check_row_keys(record, keys), unread_keys)
    if (system := record.get("system")) not in (None, ""):
        drafts = [DraftTurn("system", [fields.require_string(system, "'system'")]), *drafts]
    items = [] if image_key is None else record[image_key]
    items = [items] if isinstance(items, str | dict | bytes) else items
    if not isinstance(items, list):
        raise LorgnetteError(f"{image_key!r} is {describe_type(items)}, not a list of paths", hint="write ['…', '…']")
    images = [location.resolve_image(item, f"image {number}") for number, item in enumerate(items, start=1)]
    turns = tuple(_fill_placeholders(drafts, images, image_key or "images"))
    if fields.has_content(record.get("objects")):
        turns = objects.fill_turns(turns, record["objects"])
    check_conversation(turns, needs_answer=False, alternates=alternates)
    return Example(fields.read_id(record, location.id), turns, location.source, location.row, unread_keys)


def _find_image_key(record: Mapping[str, Any], drafts: Sequence[DraftTurn]) -> str | None:
    """The key of the record's images: "image" or "images", or else another name of an image.

    The other names are not read if the turns have their images themselves: they say where these came from.
    """
    keys = [key for key in ("image", "images") if record.get(key) not in (None, "", [])]
    has_own_images = any(isinstance(part, Image) for draft in drafts for part in draft.parts)
    if not keys and not has_own_images:
        keys = [key for key in fields.IMAGE_KEYS if fields.has_content(record.get(key))]
    if len(keys) > 1:
        raise LorgnetteError(f"the row has both {keys[0]!r} and {keys[1]!r}", hint="keep one")
    return keys[0] if keys else None


def _fill_placeholders(drafts: list[DraftTurn], images: list[Image], image_key: str) -> Iterator[Turn]:
    """Each placeholder takes the next image. Without any, the images go before the text of the only user turn."""
    num_placeholders = sum(part is NextImage for draft in drafts for part in draft.parts)
    user_turns = [draft.parts for draft in drafts if draft.role == "user"]
    has_own_images = any(isinstance(part, Image) for part in user_turns[0]) if user_turns else False
    if images and not num_placeholders and len(user_turns) == 1 and not has_own_images:
        user_turns[0][:0] = images
    elif num_placeholders != len(images):
        message = f"{num_placeholders} × {IMAGE_PLACEHOLDER} in the user's text, but {len(images)} in {image_key!r}"
        raise LorgnetteError(message, hint=f"write one {IMAGE_PLACEHOLDER} for each image, where it belongs")
    queue = iter(images)
    for role, parts, has_loss in drafts:
        yield Turn(role, merge_parts(next(queue) if isinstance(part, type) else part for part in parts), has_loss)


def format_turns(example: Example) -> tuple[list[tuple[Role, str]], list[str], dict[str, Any]]:
    """(role, text with placeholders) per turn, the images' paths in order, and the record's `objects`, if any."""
    texts: list[tuple[Role, str]] = []
    own_objects = objects.to_objects(example)
    for turn in example.turns:
        own_texts = [part for part in turn.parts if isinstance(part, str)]
        if matches := [word for word in _PLACEHOLDERS if any(word in text for text in own_texts)]:
            message = f"a text contains {matches[0]}, which is a placeholder in this format"
            raise LorgnetteError(message, hint="export as json or openai, which keep it as text, or remove it")
        parts = objects.to_placeholders(turn.parts, has_objects=bool(own_objects))
        texts.append((turn.role, "".join(IMAGE_PLACEHOLDER if isinstance(part, Image) else part for part in parts)))
    return texts, [str(image.path) for image in example.images], own_objects
