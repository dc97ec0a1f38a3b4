"""A picture and its caption, or several → Examples: a row of a CSV, of metadata.jsonl, or of any JSON.

    {"image_path": "cat.jpg", "caption": "a cat asleep"}
    {"file_name": "cat.jpg", "captions": ["a cat asleep", "a sleeping cat"]}

Knows nothing about files of records. The question is the prompt of the reading; each caption is an example of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorgnette.data import rows
from lorgnette.data.conversation import merged
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Turn

PICTURE = ("image_path", "file_name")
"""Ours and the tutorial's name; the name in an image folder's metadata."""
CAPTION = ("caption", "captions", "text")
_UNREAD = ("image", "images", "video", "videos", "audio", "audios")


def examples(record: Mapping[str, Any], place: rows.Place) -> list[Example]:
    """One record read; columns beyond the two (and "id") are not read."""
    rows.must_be_read(record, (*PICTURE, *CAPTION), _UNREAD)
    shown, said = column(record, PICTURE), column(record, CAPTION)
    picture = place.picture(record.get(shown), repr(shown))
    return described(picture, record.get(said), place, name=f"{said!r}", id_=rows.identity(record, place))


def described(picture: Picture, captions: object, place: rows.Place, *, name: str, id_: str) -> list[Example]:
    """One example a caption; where there are several, the id says which."""
    listed = captions if isinstance(captions, list) else [captions]
    if not listed:
        raise LorgnetteError(f"{name} holds no caption", remedy="write one, or remove the row")
    question = Turn("user", (picture, place.prompt) if place.prompt else (picture,))
    made = []
    for number, caption in enumerate(listed, start=1):
        text = rows.string(caption, name if len(listed) == 1 else f"{name}, caption {number},")
        if not text.strip():
            raise LorgnetteError("the caption is empty", remedy="write one, or remove the row")
        own = id_ if len(listed) == 1 else f"{id_}_{number}"
        made.append(Example(own, (question, Turn("assistant", (text,))), place.source, place.row))
    return made


def column(names: Collection[str], wanted: Sequence[str]) -> str:
    """Which of the wanted names stands there; the first where none does, so that a reader can say it is missing."""
    found = [name for name in wanted if name in names]
    if len(found) > 1:
        raise LorgnetteError(f"both {found[0]!r} and {found[1]!r} stand there", remedy="rename or remove one of them")
    return found[0] if found else wanted[0]


def written(example: Example, prompt: str) -> dict[str, str]:
    """The record that reads back as this example, but for its id, which captions do not keep."""
    parts = [merged(turn.parts) for turn in example.turns]
    match [(turn.role, *part) for turn, part in zip(example.turns, parts, strict=True)]:
        case [("user", Picture(path=path), *asked), ("assistant", str(answer))] if asked in ([], [prompt]):
            if "".join(str(part) for part in asked) == prompt:
                return {PICTURE[0]: str(path), CAPTION[0]: answer}
    raise LorgnetteError(
        f"captions hold one picture, the question {prompt!r} and one answer, and this row is another conversation",
        remedy="take another form, or give this question as the prompt",
    )
