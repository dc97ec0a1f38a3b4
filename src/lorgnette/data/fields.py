"""Checks the fields of one raw row: text is text, lists hold objects, and no key is ignored silently.

A reader declares the keys that it reads. Every other key with content is named (`Example.unread_keys`), or refused if
training would miss what it holds. Marks say which answers are learned. Knows nothing about the format of the row. Every
check raises a LorgnetteError that names the field.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError
from lorgnette.types import Role

IMAGE_KEYS = (
    *("image_path", "image_paths", "file_name", "image_file", "image_url", "image_urls", "img", "imgs", "img_path"),
    *("picture", "pictures", "photo", "photos"),
)
"""Names of an image beside a conversation, for rows without "image" and "images"."""
_VIDEO_OR_AUDIO = {"video", "videos", "audio", "audios"}
_REFUSED_KEYS = {
    *("image", "images", *_VIDEO_OR_AUDIO),
    *("objects", "bbox", "bboxes", "box", "boxes"),
    *("min_pixels", "max_pixels", "resized_height", "resized_width"),
    *("question", "questions", "prompt", "query", "instruction", "system", "system_prompt", "history"),
    *("answer", "answers", "response", "responses", "completion"),
    *("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images"),
    *("tools", "functions", "tool_calls", "function_call", "reasoning_content", "train_detail"),
}
"""What can only mean an image, a box, a size, the text of a role, or what is trained: read, or the row is refused."""
TURN_MARKS = ("loss", "loss_weight", "loss_scale", "weight", "train", "training")
"""Of ms-swift, LLaMA-Factory, OpenAI and axolotl."""
ROW_MARKS = ("loss", "loss_weight", "loss_scale", "sample_weight", "kto_tag", "label")
"""`label` is a mark if it is true or false, as in KTO; any other label is a class."""
TABLE_MARKS = ("loss_weight", "loss_scale", "sample_weight", "kto_tag")
"""Of a row of captions, whose other columns may have any meaning."""


def require_string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not text", hint=f"put text into {name}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character"
            raise LorgnetteError(f"{name} has {half}", hint="write the whole character") from error
    return value


def require_objects(value: object, name: str) -> list[Mapping[str, Any]]:
    """A list that holds only objects."""
    if not isinstance(value, list):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not a list", hint=f"make {name} a list of objects")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            message = f"{name}, item {number} is {describe_type(item)}, not an object"
            raise LorgnetteError(message, hint="write it as {…}")
    return value


def read_id(record: Mapping[str, Any], default: str) -> str:
    """The row's own id (text or a number), else `default`."""
    value = record.get("id")
    if value is None or value == "":
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return require_string(value, "id")


def has_content(value: object) -> bool:
    """False for null, blank text, and empty lists and objects: nothing is lost without them."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, list | dict | bytes) and not value)


def check_row_keys(
    record: Mapping[str, Any],
    read_keys: Collection[str],
    *,
    marks: Sequence[str] = ROW_MARKS,
    is_strict: bool = True,
    hint: str = "",
) -> tuple[str, ...]:
    """The row's keys with content that are not read, in order.

    Raises LorgnetteError if a mark says that the row is not to be learned and, with is_strict, if training would miss
    what an unread key holds. hint: what to do then.
    """
    own_marks = [
        key for key in _select_keys(tuple(record), tuple(marks)) if key != "label" or _is_yes_or_no(record[key])
    ]
    if own_marks and _read_marks(record, own_marks, "the row") is False:
        message = f"the row is marked as not to be learned ({', '.join(own_marks)})"
        raise LorgnetteError(message, hint="remove the row, or correct the mark")
    return list_unread_keys(record, read_keys, known_keys=tuple(own_marks), is_strict=is_strict, hint=hint)


def list_unread_keys(
    record: Mapping[str, Any],
    read_keys: Collection[str],
    *,
    known_keys: tuple[str, ...] = (),
    owner: str = "the row",
    prefix: str = "",
    is_strict: bool = True,
    hint: str = "",
) -> tuple[str, ...]:
    """The record's keys with content that are not read, each behind `prefix`, as `Example.unread_keys` has them.

    Raises LorgnetteError if training would miss what one of them holds, unless is_strict is False. owner: of the keys,
    for the error. known_keys: read too, but not offered there.
    """
    others = _select_keys(tuple(record), (*read_keys, *known_keys), is_inverted=True)
    if not others:
        return ()
    unread = [key for key in others if has_content(record[key])]
    lost = [key for key in unread if is_strict and key.strip().lower() in _REFUSED_KEYS and record[key] is not False]
    if unsupported := [key for key in lost if key.strip().lower() in _VIDEO_OR_AUDIO]:
        message = f"{owner} has {', '.join(map(repr, unsupported))}; only images and text are supported"
        raise LorgnetteError(message, hint="remove the row, or use single images of it")
    if lost:
        message = f"{owner} has {', '.join(map(repr, lost))}, which this format does not read"
        raise LorgnetteError(message, hint=hint or f"remove it, or use {', '.join(map(repr, read_keys))}")
    return tuple(f"{prefix}{key or '(no name)'}" for key in unread)


@lru_cache(maxsize=4096)
def _select_keys(keys: tuple[str, ...], wanted: tuple[str, ...], *, is_inverted: bool = False) -> tuple[str, ...]:
    """The keys that are among the wanted ones, or, inverted, that are not. Cached: most rows have the same keys."""
    return tuple(key for key in keys if (key in wanted) != is_inverted)


@lru_cache(maxsize=4096)
def join_keys(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """The keys of all groups, each once. Cached: the rows of a file have the same keys and share the tuple."""
    return tuple(dict.fromkeys(chain.from_iterable(groups)))


def read_loss_mark(item: Mapping[str, Any], role: Role, owner: str) -> bool:
    """Whether the turn has a loss: False for an answer with a mark that says so.

    Raises LorgnetteError for a mark that is no yes or no, and for one that asks to learn another turn than an answer.
    """
    keys = _select_keys(tuple(item), TURN_MARKS)
    mark = _read_marks(item, keys, owner) if keys else None
    if mark and role != "assistant":
        message = f"{owner} is marked as to be learned, but it is from the {role}; only answers are learned"
        raise LorgnetteError(message, hint="remove the mark")
    return mark is not False or role != "assistant"


def _read_marks(record: Mapping[str, Any], keys: Collection[str], owner: str) -> bool | None:
    """True: to be learned, False: not to be learned, None: no mark."""
    marks: dict[str, bool] = {}
    for key in keys:
        if has_content(value := record[key]):
            text = str(value).strip().lower()
            if text not in _MARK_VALUES:
                message = f"{key!r} of {owner} is {value!r}; an answer is learned (1) or not (0)"
                raise LorgnetteError(message, hint="write 1 or 0, or remove it")
            marks[key] = _MARK_VALUES[text]
    if len(set(marks.values())) > 1:
        message = f"the marks {', '.join(map(repr, marks))} of {owner} differ"
        raise LorgnetteError(message, hint="keep one of them")
    return next(iter(marks.values()), None)


def _is_yes_or_no(value: object) -> bool:
    return str(value).strip().lower() in ("true", "false")


_MARK_VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
