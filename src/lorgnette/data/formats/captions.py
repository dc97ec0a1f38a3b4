"""A picture and its caption, or several → Examples: a row of a CSV, of metadata.jsonl, or of any JSON.

    {"image_path": "cat.jpg", "caption": "a cat asleep"}
    {"file_name": "cat.jpg", "captions": ["a cat asleep", "a sleeping cat"]}

Knows nothing about files of records. The question is the prompt of the reading; each caption is an example of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.conversation import merge_parts
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

IMAGE_COLUMNS = ("image_path", "file_name")
"""Ours and the tutorial's name; the name in an image folder's metadata."""
CAPTION_COLUMNS = ("caption", "captions", "text")
_UNREAD_KEYS = ("image", "images", "video", "videos", "audio", "audios")


def read_record(record: Mapping[str, Any], location: row_location.RowLocation) -> list[Example]:
    """One record read; columns beyond the two (and "id") are not read."""
    row_location.reject_unread_keys(record, (*IMAGE_COLUMNS, *CAPTION_COLUMNS), _UNREAD_KEYS)
    shown, said = find_column(record, IMAGE_COLUMNS), find_column(record, CAPTION_COLUMNS)
    picture = location.resolve_image(record.get(shown), repr(shown))
    return build_examples(
        picture, record.get(said), location, name=f"{said!r}", id_=row_location.read_id(record, location)
    )


def build_examples(
    image: Image, captions: object, location: row_location.RowLocation, *, name: str, id_: str
) -> list[Example]:
    """One example a caption; where there are several, the id says which."""
    listed = captions if isinstance(captions, list) else [captions]
    if not listed:
        raise LorgnetteError(f"{name} holds no caption", hint="write one, or remove the row")
    question = Turn("user", (image, location.prompt) if location.prompt else (image,))
    made = []
    for number, caption in enumerate(listed, start=1):
        text = row_location.require_string(caption, name if len(listed) == 1 else f"{name}, caption {number},")
        if not text.strip():
            raise LorgnetteError("the caption is empty", hint="write one, or remove the row")
        own = id_ if len(listed) == 1 else f"{id_}_{number}"
        made.append(Example(own, (question, Turn("assistant", (text,))), location.source, location.row))
    return made


def find_column(names: Collection[str], wanted: Sequence[str]) -> str:
    """Which of the wanted names stands there; the first where none does, so that a reader can say it is missing."""
    found = [name for name in wanted if name in names]
    if len(found) > 1:
        raise LorgnetteError(f"both {found[0]!r} and {found[1]!r} stand there", hint="rename or remove one of them")
    return found[0] if found else wanted[0]


def to_record(example: Example, prompt: str) -> dict[str, str]:
    """The record that reads back as this example, but for its id, which captions do not keep."""
    parts = [merge_parts(turn.parts) for turn in example.turns]
    match [(turn.role, *part) for turn, part in zip(example.turns, parts, strict=True)]:
        case [("user", Image(path=path), *asked), ("assistant", str(answer))] if asked in ([], [prompt]):
            if "".join(str(part) for part in asked) == prompt:
                return {IMAGE_COLUMNS[0]: str(path), CAPTION_COLUMNS[0]: answer}
    raise LorgnetteError(
        f"captions hold one picture, the question {prompt!r} and one answer, and this row is another conversation",
        hint="take another form, or give this question as the prompt",
    )
