"""Texts in which `<image>` stands for the next of a list of pictures ↔ turns: what LLaVA, TRL, ms-swift and
LLaMA-Factory have in common, whatever they call roles and keys.

Only the user's `<image>` is a placeholder, elsewhere it is text, and nothing else is special: `<|im_end|>` is text
everywhere. Texts and pictures stay where they stand and as they are written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Role, Turn

IMAGE_PLACEHOLDER = "<image>"
_PLACEHOLDERS = (IMAGE_PLACEHOLDER, "<video>", "<audio>")
READ_KEYS = ("image", "images", "system")
UNREAD_KEYS = (
    *("video", "videos", "audio", "audios", "objects", "tools", "chosen", "rejected"),
    *("rejected_response", "rejected_messages", "rejected_images"),
)
"""Keys of these forms that carry something to learn from and are not read here."""


class NextImage:
    """Stands for the next of the pictures until they are dealt out."""


Part = str | Image | type[NextImage]
DraftTurn = tuple[Role, list[Part]]


def split_placeholders(role: Role, text: str) -> DraftTurn:
    if role != "user":
        return role, [text]
    first, *others = text.split(IMAGE_PLACEHOLDER)
    return role, [first, *(part for other in others for part in (NextImage, other))]


def build_example(
    record: Mapping[str, Any], location: row_location.RowLocation, drafts: list[DraftTurn], *, read_keys: Sequence[str]
) -> Example:
    """The record's conversation: its "system" first, the pictures under "image" or "images" dealt out."""
    row_location.reject_unread_keys(record, ("id", *read_keys, *READ_KEYS), UNREAD_KEYS)
    system = record.get("system")
    if system not in (None, ""):
        drafts = [("system", [row_location.require_string(system, "'system'")]), *drafts]
    turns = tuple(_fill_placeholders(drafts, _read_images(record, location)))
    check_conversation(turns)
    return Example(row_location.read_id(record, location), turns, location.source, location.row)


def _read_images(record: Mapping[str, Any], location: row_location.RowLocation) -> list[Image]:
    given = [key for key in ("image", "images") if record.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise LorgnetteError("the row has both 'image' and 'images'", hint="keep one")
    if not given:
        return []
    key = given[0]
    listed = [record[key]] if isinstance(record[key], str | dict) else record[key]
    if not isinstance(listed, list):
        raise LorgnetteError(f"{key!r} is {describe_type(listed)}, not a list of paths", hint="write ['…', '…']")
    return [location.resolve_image(_read_path(each), f"image {number}") for number, each in enumerate(listed, start=1)]


def _read_path(entry: object) -> object:
    """{"path": …} is how Hugging Face's data sets and ms-swift write a path where bytes could stand as well."""
    return entry["path"] if isinstance(entry, dict) and isinstance(entry.get("path"), str) else entry


def _fill_placeholders(drafts: list[DraftTurn], images: list[Image]) -> Iterator[Turn]:
    """Each placeholder takes the next picture. No placeholder at all and a single user turn: they go before its text,
    since nothing else can be meant."""
    holders = sum(part is NextImage for _, parts in drafts for part in parts)
    users = [parts for role, parts in drafts if role == "user"]
    if images and not holders and len(users) == 1 and not any(isinstance(part, Image) for part in users[0]):
        users[0][:0] = images
    elif holders != len(images):
        raise LorgnetteError(
            f"{holders} × {IMAGE_PLACEHOLDER} in the user's text, but {len(images)} in 'images'",
            hint=f"write one {IMAGE_PLACEHOLDER} where each picture belongs",
        )
    queue = iter(images)
    for role, parts in drafts:
        yield Turn(role, merge_parts(next(queue) if isinstance(part, type) else part for part in parts))


def format_turns(example: Example) -> tuple[list[tuple[Role, str]], list[str]]:
    """(role, text with placeholders) by turns, and the pictures' paths in order."""
    said: list[tuple[Role, str]] = []
    for turn in example.turns:
        texts = [part for part in turn.parts if isinstance(part, str)]
        if found := [word for word in _PLACEHOLDERS if any(word in text for text in texts)]:
            raise LorgnetteError(
                f"a text holds {found[0]}, which means a picture or a film in this form",
                hint="export as json or openai, which keep it as text, or remove it",
            )
        said.append((turn.role, "".join(IMAGE_PLACEHOLDER if isinstance(part, Image) else part for part in turn.parts)))
    return said, [str(picture.path) for picture in example.images]
