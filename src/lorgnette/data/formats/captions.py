"""An image with one or several captions → Examples: a row of a CSV, of metadata.jsonl, or of any JSON.

    {"image_path": "cat.jpg", "caption": "a cat asleep"}
    {"file_name": "cat.jpg", "captions": ["a cat asleep", "a sleeping cat"]}

The user's text is the prompt of `ReadOptions`; each caption becomes its own example. Knows nothing about files.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorgnette.data import fields
from lorgnette.data.conversation import merge_parts
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

IMAGE_COLUMNS = ("image_path", "file_name")
"""Our name, which is the tutorial's; the name in an image folder's metadata."""
CAPTION_COLUMNS = ("caption", "captions", "text")
_UNREAD_KEYS = ("image", "images", "video", "videos", "audio", "audios")


def read_record(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
    """The record's examples. Reads the two columns and "id", no others."""
    fields.reject_unread_keys(record, (*IMAGE_COLUMNS, *CAPTION_COLUMNS), _UNREAD_KEYS)
    image_column, caption_column = find_column(record, IMAGE_COLUMNS), find_column(record, CAPTION_COLUMNS)
    image = location.resolve_image(record.get(image_column), repr(image_column))
    id_ = fields.read_id(record, location.id)
    return build_examples(image, record.get(caption_column), location, name=repr(caption_column), id_=id_)


def build_examples(image: Image, captions: object, location: RowLocation, *, name: str, id_: str) -> list[Example]:
    """One example per caption, numbered in its id if there are several. name: the captions' name in errors."""
    texts = captions if isinstance(captions, list) else [captions]
    if not texts:
        raise LorgnetteError(f"{name} has no caption", hint="write one, or remove the row")
    question = Turn("user", (image, location.prompt) if location.prompt else (image,))
    examples = []
    for number, caption in enumerate(texts, start=1):
        text = fields.require_string(caption, name if len(texts) == 1 else f"{name}, caption {number},")
        if not text.strip():
            raise LorgnetteError("the caption is empty", hint="write one, or remove the row")
        own_id = id_ if len(texts) == 1 else f"{id_}_{number}"
        examples.append(Example(own_id, (question, Turn("assistant", (text,))), location.source, location.row))
    return examples


def find_column(names: Collection[str], wanted: Sequence[str]) -> str:
    """The wanted name that is among the names; the first wanted one if none is, for the error that it is missing."""
    matches = [name for name in wanted if name in names]
    if len(matches) > 1:
        raise LorgnetteError(f"both {matches[0]!r} and {matches[1]!r} are given", hint="rename or remove one of them")
    return matches[0] if matches else wanted[0]


def to_record(example: Example, prompt: str) -> dict[str, str]:
    """The record that reads back as this example except for its id, which captions do not have."""
    parts = [merge_parts(turn.parts) for turn in example.turns]
    match [(turn.role, *part) for turn, part in zip(example.turns, parts, strict=True)]:
        case [("user", Image(path=path), *texts), ("assistant", str(answer))] if texts in ([], [prompt]):
            if "".join(str(text) for text in texts) == prompt:
                return {IMAGE_COLUMNS[0]: str(path), CAPTION_COLUMNS[0]: answer}
    message = f"captions hold one image, the question {prompt!r} and one answer; this row is another conversation"
    raise LorgnetteError(message, hint="use another format, or give this question as the prompt")
