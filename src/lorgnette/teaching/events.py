"""The events of a `teach` run: lines of JSON in journal.jsonl, in the order in which they happened.

    {"t": 1795836008.1, "event": "suggested", "id": "s41", "image": "a/b.jpg", "sha": "9f3…", "round": 3, …}
    {"t": 1795836014.3, "event": "answered", "id": "s41", "text": "A big …", "seconds": 6.2, "keys": 5, "counts": true}

All state of a run is a function of its events. An image's name is its path in the folder, with slashes. Knows nothing
about files, models or pages.
"""

import json
import math
import re
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import describe_type, parse_json, shorten

Pick = Literal["spread", "shuffled", "hardest", "review", "given"]
"""Why an image comes next: far from those before, in shuffled order, least sure, for a second look. "given" is an
answer that was there before the run."""
FailureKind = Literal["memory", "loss", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvent:
    """t: Unix seconds, by a clock that may jump; the order of the lines is that of the events."""

    t: float

    def to_json(self) -> str:
        """The event's line, without its end. A name that is not UTF-8 keeps its bytes, escaped."""
        record = asdict(self)
        values = {"t": record.pop("t"), "event": EVENT_NAMES[type(self)], **record}
        return json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(BaseEvent):
    """A process begins to work on the run; a run that is started again has several."""

    folder: str
    model: str
    prompt: str
    seed: int
    num_images: int
    labels: list[str]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggested(BaseEvent):
    """An image is about to be shown, with this text in the field.

    round: of the model that wrote the text, 0 for the untuned one; None: no model wrote it. text: None: there is none
    yet. A later event with the same id and image gives the text once the model has written it, before it is shown.
    surety: mean log-probability of the text's tokens. blind: the text is not shown. alike: the look-alike whose answer
    the text is. In a review the text is the present answer.
    """

    id: str
    image: str
    sha: str
    round: int | None
    pick: Pick
    text: str | None
    surety: float | None = None
    blind: bool = False
    alike: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UntunedShown(BaseEvent):
    """The person asked what the untuned model says of an image, and can see it from now on. It is no suggestion."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(BaseEvent):
    """seconds: since the image was shown. keys: how many were pressed. counts: whether it judges the suggestion.

    An answer that was undone and is given again has the same id, and counts no more.
    """

    id: str
    text: str
    seconds: float
    keys: int
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended(BaseEvent):
    """An earlier answer is replaced. Its verdict stays."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed(BaseEvent):
    """A second look at an answer, which `text` replaces if it differs."""

    id: str
    text: str
    reviewer: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(BaseEvent):
    """reason: "user", or "broken: …" for an image that cannot be read."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone(BaseEvent):
    """The answer, the review or the skip with this id is taken back; its image is shown again."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundBegun(BaseEvent):
    """answers: how many it trains on. digest: of their names and texts, in order."""

    round: int
    answers: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone(BaseEvent):
    """loss: nats a token at the end. end_reason: the trainer's."""

    round: int
    answers: int
    steps: int
    loss: float
    seconds: float
    end_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFailed(BaseEvent):
    """The model of the round before goes on."""

    round: int
    message: str
    hint: str
    kind: FailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(BaseEvent):
    """answers: in captions.csv. suggestions: in suggestions.csv."""

    answers: int
    suggestions: int


Event = (
    Opened
    | Suggested
    | UntunedShown
    | Answered
    | Mended
    | Reviewed
    | Skipped
    | Undone
    | RoundBegun
    | RoundDone
    | RoundFailed
    | Finished
)
EVENT_NAMES: dict[type, str] = {
    kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(Event)
}
"""Class → the value of its "event"."""
_KINDS = {name: kind for kind, name in EVENT_NAMES.items()}


def parse_event(line: str | bytes) -> Event:
    """The event of a line. Raises LorgnetteError for an unknown event, and for a key too many, missing or of another
    type; the caller adds file and line."""
    record = parse_json(line)
    if not isinstance(record, dict):
        raise LorgnetteError(f"it is {describe_type(record)}, not an object")
    name = record.pop("event", None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise LorgnetteError(f"there is no event {shorten(repr(name))}")
    types, required = _list_fields(kind)
    if unknown := [key for key in record if key not in types]:
        raise LorgnetteError(f"{name} has the unknown key {shorten(repr(unknown[0]))}")
    if missing := [key for key in required if key not in record]:
        raise LorgnetteError(f"{name} lacks {missing[0]!r}")
    for key, value in record.items():
        if not _has_type(value, types[key]):
            raise LorgnetteError(f"{key} of {name} is {describe_type(value)}")
    event: Event = kind(**record)
    return event


@cache
def _list_fields(kind: type) -> tuple[dict[str, Any], list[str]]:
    """(name → type, the names without a default)"""
    return get_type_hints(kind), [field.name for field in fields(kind) if field.default is MISSING]


def _has_type(value: Any, expected: Any) -> bool:
    """Whether a JSON value has the type of a field. A whole number is a float too; true is no number."""
    origin = get_origin(expected)
    if origin is UnionType:
        return any(_has_type(value, option) for option in get_args(expected))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(expected)
    if origin is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if expected is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is expected
