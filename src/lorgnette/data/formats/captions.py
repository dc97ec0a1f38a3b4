"""An image with one or several captions → Examples: a row of a CSV, of metadata.jsonl, or of any JSON.

    {"image_path": "cat.jpg", "caption": "a cat asleep"}
    {"file_name": "cat.jpg", "captions": ["a cat asleep", "a sleeping cat"]}
    {"image_path": "cat.jpg", "question": "What is it?", "answer": "a cat", "system": "Be brief."}

The user's text is the row's own question, or else the prompt of `ReadOptions`; each caption becomes its own example. A
row without a caption is a question alone, for predictions. Blanks around a text are removed unless `ReadOptions.trim`
is False. Knows nothing about files.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lorgnette.data import fields
from lorgnette.data.conversation import merge_parts
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

IMAGE_COLUMNS = ("image_path", "file_name")
"""Our name, which is the tutorial's; the name in an image folder's metadata."""
CAPTION_COLUMNS = ("caption", "captions", "text")
ANSWER_COLUMNS = ("answer", "answers", "response")
QUESTION_COLUMNS = ("question", "prompt", "query", "instruction")
SYSTEM_COLUMNS = ("system", "system_prompt")


@dataclass(frozen=True, slots=True)
class Context:
    """What a row has beside its image and captions. question: None for the prompt of the options.

    columns: the columns that were read for it.
    """

    question: str | None = None
    system: str | None = None
    columns: tuple[str, ...] = ()


NO_CONTEXT = Context()


def read_record(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
    """The record's examples."""
    image_column, caption_column = find_columns(tuple(record))
    context = read_context(record)
    read_keys = ("id", image_column, caption_column, *context.columns)
    unread_keys = fields.check_row_keys(record, read_keys, marks=fields.TABLE_MARKS)
    has_captions = caption_column in record
    if not has_captions and unread_keys:
        message = f"the row has no {caption_column!r}, only {', '.join(map(repr, (image_column, *unread_keys)))}"
        raise LorgnetteError(message, hint=f"rename the key of the caption to {caption_column!r}")
    return build_examples(
        location.resolve_image(record.get(image_column), repr(image_column)),
        record.get(caption_column),
        location,
        name=repr(caption_column),
        id_=fields.read_id(record, location.id),
        context=context,
        unread_keys=unread_keys,
        has_captions=has_captions,
    )


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

    has_captions: False for a question without an answer.
    """
    texts = captions if isinstance(captions, list) else [captions]
    if not texts:
        raise LorgnetteError(f"{name} has no caption", hint="write one, or remove the row")
    own_texts = context.question, context.system
    question, system = (text and location.trim_text(text) for text in own_texts)
    is_trimmed = (question, system) != own_texts
    prompt = location.prompt if question is None else question
    turns = (*((Turn("system", (system,)),) if system else ()), Turn("user", (image, prompt) if prompt else (image,)))
    if not has_captions:
        return [Example(id_, turns, location.source, location.row, unread_keys, is_trimmed)]
    examples = []
    for number, caption in enumerate(texts, start=1):
        text = fields.require_string(caption, name if len(texts) == 1 else f"{name}, caption {number},")
        answer = location.trim_text(text)
        if not answer.strip():
            where = str(image.path)
            raise LorgnetteError("the caption is empty", where=where, hint="write one, or remove the row")
        own_id = id_ if len(texts) == 1 else f"{id_}_{number}"
        own_turns, has_blanks = (*turns, Turn("assistant", (answer,))), answer != text
        examples.append(
            Example(own_id, own_turns, location.source, location.row, unread_keys, is_trimmed or has_blanks)
        )
    return examples


def read_context(record: Mapping[str, Any], taken: Collection[str] = ()) -> Context:
    """The row's own question and system prompt. taken: columns that hold something else."""
    groups = _find_context_columns(tuple(record))
    if not any(groups):
        return NO_CONTEXT
    question_column, system_column = (
        next((name for name in group if record[name] is not None and name not in taken), None) for group in groups
    )
    if question_column is None and system_column is None:
        return NO_CONTEXT
    question = system = None
    if question_column is not None:
        question = fields.require_string(record[question_column], repr(question_column))
        if not question.strip():
            raise LorgnetteError(f"{question_column!r} is empty", hint="write the question, or remove the row")
    if system_column is not None:
        system = fields.require_string(record[system_column], repr(system_column))
    columns = tuple(column for column in (question_column, system_column) if column is not None)
    return Context(question, system, columns)


@lru_cache(maxsize=1024)
def find_columns(names: tuple[str, ...]) -> tuple[str, str]:
    """The columns of image and captions. Cached: most rows have the same columns."""
    return find_column(names, IMAGE_COLUMNS), find_caption_column(names)


def find_caption_column(names: Collection[str]) -> str:
    """The column of captions or answers; beside a question that of answers. The first name if there is none."""
    has_question = any(is_named(name, QUESTION_COLUMNS) for name in names)
    groups = (ANSWER_COLUMNS, CAPTION_COLUMNS) if has_question else (CAPTION_COLUMNS, ANSWER_COLUMNS)
    group = next((group for group in groups if not set(group).isdisjoint(names)), CAPTION_COLUMNS)
    return find_column(names, group)


def find_column(names: Collection[str], wanted: Sequence[str]) -> str:
    """The wanted name that is among the names; the first wanted one if none is, for the error that it is missing."""
    matches = [name for name in wanted if name in names]
    if len(matches) > 1:
        raise LorgnetteError(f"both {matches[0]!r} and {matches[1]!r} are given", hint="rename or remove one of them")
    return matches[0] if matches else wanted[0]


def strip_line_end(text: str) -> str:
    """A text file's content without the end of its last line, which is the file's and not the caption's."""
    return text.removesuffix("\n").removesuffix("\r")


def is_named(name: str, wanted: Sequence[str]) -> bool:
    """Case does not matter."""
    return _normalize(name) in wanted


def _normalize(name: str) -> str:
    return name.strip().lower()


@lru_cache(maxsize=1024)
def _find_context_columns(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of questions and of system prompts, best first. Cached: most rows have the same columns."""
    questions, systems = (
        tuple(sorted((n for n in names if is_named(n, wanted)), key=lambda n: wanted.index(_normalize(n))))
        for wanted in (QUESTION_COLUMNS, SYSTEM_COLUMNS)
    )
    return questions, systems


def to_record(example: Example, prompt: str) -> dict[str, str]:
    """The record that reads back as this example except for its id and the prompt, which are not in it.

    It has a system prompt and an answer if the example has them.
    """
    turns = [(turn.role, *merge_parts(turn.parts)) for turn in example.turns]
    system = {}
    match turns:
        case [("system", str(text)), *turns]:
            system = {SYSTEM_COLUMNS[0]: text}
    match turns:
        case [("user", Image(path=path), *texts), *answers] if texts == ([prompt] if prompt else []):
            match answers:
                case []:
                    return {IMAGE_COLUMNS[0]: str(path), **system}
                case [("assistant", str(answer))]:
                    return {IMAGE_COLUMNS[0]: str(path), CAPTION_COLUMNS[0]: answer, **system}
    message = f"captions hold one image, the question {prompt!r} and one answer; this row is another conversation"
    raise LorgnetteError(message, hint="use another format, or give this question as the prompt")
