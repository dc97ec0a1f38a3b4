"""Texts in which `<image>` stands for the next of a list of pictures ↔ turns: what LLaVA, TRL, ms-swift and
LLaMA-Factory have in common, whatever they call roles and keys.

Only the user's `<image>` is a placeholder, elsewhere it is text, and nothing else is special: `<|im_end|>` is text
everywhere. Texts and pictures stay where they stand and as they are written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorgnette.data import rows
from lorgnette.data.conversation import merged, must_be_learnable
from lorgnette.data.text_files import kind
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Role, Turn

HERE = "<image>"
_MEANT_ELSEWHERE = (HERE, "<video>", "<audio>")
KEYS = ("image", "images", "system")
UNREAD = (
    *("video", "videos", "audio", "audios", "objects", "tools", "chosen", "rejected"),
    *("rejected_response", "rejected_messages", "rejected_images"),
)
"""Keys of these forms that carry something to learn from and are not read here."""


class Next:
    """Stands for the next of the pictures until they are dealt out."""


Part = str | Picture | type[Next]
Draft = tuple[Role, list[Part]]


def draft(role: Role, text: str) -> Draft:
    if role != "user":
        return role, [text]
    first, *others = text.split(HERE)
    return role, [first, *(part for other in others for part in (Next, other))]


def example(record: Mapping[str, Any], place: rows.Place, drafts: list[Draft], *, known: Sequence[str]) -> Example:
    """The record's conversation: its "system" first, the pictures under "image" or "images" dealt out."""
    rows.must_be_read(record, ("id", *known, *KEYS), UNREAD)
    system = record.get("system")
    if system not in (None, ""):
        drafts = [("system", [rows.string(system, "'system'")]), *drafts]
    turns = tuple(_dealt(drafts, _pictures(record, place)))
    must_be_learnable(turns)
    return Example(rows.identity(record, place), turns, place.source, place.row)


def _pictures(record: Mapping[str, Any], place: rows.Place) -> list[Picture]:
    given = [key for key in ("image", "images") if record.get(key) not in (None, "", [])]
    if len(given) > 1:
        raise LorgnetteError("the row has both 'image' and 'images'", remedy="keep one")
    if not given:
        return []
    key = given[0]
    listed = [record[key]] if isinstance(record[key], str | dict) else record[key]
    if not isinstance(listed, list):
        raise LorgnetteError(f"{key!r} is {kind(listed)}, not a list of paths", remedy="write ['…', '…']")
    return [place.picture(_path(each), f"image {number}") for number, each in enumerate(listed, start=1)]


def _path(entry: object) -> object:
    """{"path": …} is how Hugging Face's data sets and ms-swift write a path where bytes could stand as well."""
    return entry["path"] if isinstance(entry, dict) and isinstance(entry.get("path"), str) else entry


def _dealt(drafts: list[Draft], pictures: list[Picture]) -> Iterator[Turn]:
    """Each placeholder takes the next picture. No placeholder at all and a single user turn: they go before its text,
    since nothing else can be meant."""
    holders = sum(part is Next for _, parts in drafts for part in parts)
    users = [parts for role, parts in drafts if role == "user"]
    if pictures and not holders and len(users) == 1 and not any(isinstance(part, Picture) for part in users[0]):
        users[0][:0] = pictures
    elif holders != len(pictures):
        raise LorgnetteError(
            f"{holders} × {HERE} in the user's text, but {len(pictures)} in 'images'",
            remedy=f"write one {HERE} where each picture belongs",
        )
    queue = iter(pictures)
    for role, parts in drafts:
        yield Turn(role, merged(next(queue) if isinstance(part, type) else part for part in parts))


def written(example_: Example) -> tuple[list[tuple[Role, str]], list[str]]:
    """(role, text with placeholders) by turns, and the pictures' paths in order."""
    said: list[tuple[Role, str]] = []
    for turn in example_.turns:
        texts = [part for part in turn.parts if isinstance(part, str)]
        if found := [word for word in _MEANT_ELSEWHERE if any(word in text for text in texts)]:
            raise LorgnetteError(
                f"a text holds {found[0]}, which means a picture or a film in this form",
                remedy="export as json or openai, which keep it as text, or remove it",
            )
        said.append((turn.role, "".join(HERE if isinstance(part, Picture) else part for part in turn.parts)))
    return said, [str(picture.path) for picture in example_.pictures]
