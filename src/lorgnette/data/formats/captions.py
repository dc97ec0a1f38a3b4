"""An image with one or several captions → Examples, and back: a row of any table, whose columns `columns` chooses.

    {"image_path": "cat.jpg", "caption": "a cat asleep"}
    {"file_name": "cat.jpg", "captions": ["a cat asleep", "a sleeping cat"]}
    {"image_path": "cat.jpg", "question": "What is it?", "answer": "a cat", "system": "Be brief."}

The user's text is the row's own question, or else the prompt of `ReadOptions`; each caption becomes its own example. A
row without a caption is a question alone, for predictions. Blanks around a text are removed unless `ReadOptions.trim`
is False. Knows nothing about files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lorgnette.data import fields
from lorgnette.data.conversation import merge_parts
from lorgnette.data.row_location import EMPTY_CAPTION, RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

IMAGE_COLUMN, CAPTION_COLUMN, SYSTEM_COLUMN = "image_path", "caption", "system"
"""The names that are written; `columns` has those that are read."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a row has beside its image and captions. question: None for the prompt of the options.

    columns: the columns that were read for it.
    """

    question: str | None = None
    system: str | None = None
    columns: tuple[str, ...] = ()


NO_CONTEXT = Context()


def build_examples(
    image: Image,
    captions: object,
    location: RowLocation,
    *,
    name: str,
    id_: str,
    context: Context = NO_CONTEXT,
    unread_keys: tuple[str, ...] = (),
    has_captions: bool = True,
) -> list[Example]:
    """One example per caption, numbered in its id if there are several. name: the captions' name in errors.

    captions: a text, or a list of texts or of objects with a `raw`, `caption` or `text`; blank ones are none.
    has_captions: False for a question without an answer.
    """
    own_texts = context.question, context.system
    question, system = (text and location.trim_text(text) for text in own_texts)
    is_trimmed = (question, system) != own_texts
    prompt = location.prompt if question is None else question
    turns = (*((Turn("system", (system,)),) if system else ()), Turn("user", (image, prompt) if prompt else (image,)))
    if not has_captions:
        return [Example(id_, turns, location.source, location.row, unread_keys, is_trimmed)]
    texts = _list_texts(captions, name)
    if not texts:
        where = str(image.path)
        raise LorgnetteError(EMPTY_CAPTION, where=where, hint="write one, or remove the row")
    examples = []
    for number, text in enumerate(texts, start=1):
        answer = location.trim_text(text)
        own_id = id_ if len(texts) == 1 else f"{id_}_{number}"
        own_turns, has_blanks = (*turns, Turn("assistant", (answer,))), answer != text
        examples.append(
            Example(own_id, own_turns, location.source, location.row, unread_keys, is_trimmed or has_blanks)
        )
    return examples


def _list_texts(value: object, name: str) -> list[str]:
    if isinstance(value, str):
        return [fields.require_string(value, name)] if value.strip() else []
    if isinstance(value, Mapping) and (key := next((key for key in ("raw", "caption", "text") if key in value), None)):
        return _list_texts(value[key], name)
    if isinstance(value, list):
        return [text for item in value for text in _list_texts(item, name)]
    return [fields.require_string(value, name)] if fields.has_content(value) else []


def strip_line_end(text: str) -> str:
    """A text file's content without the end of its last line, which is the file's and not the caption's."""
    return text.removesuffix("\n").removesuffix("\r")


def to_record(example: Example, prompt: str) -> dict[str, str]:
    """The record that reads back as this example except for its id and the prompt, which are not in it.

    It has a system prompt and an answer if the example has them.
    """
    turns = [(turn.role, *merge_parts(turn.parts)) for turn in example.turns]
    system = {}
    match turns:
        case [("system", str(text)), *turns]:
            system = {SYSTEM_COLUMN: text}
    match turns:
        case [("user", Image(path=path), *texts), *answers] if texts == ([prompt] if prompt else []):
            match answers:
                case []:
                    return {IMAGE_COLUMN: str(path), **system}
                case [("assistant", str(answer))]:
                    return {IMAGE_COLUMN: str(path), CAPTION_COLUMN: answer, **system}
    message = f"captions hold one image, the question {prompt!r} and one answer; this row is another conversation"
    raise LorgnetteError(message, hint="use another format, or give this question as the prompt")
