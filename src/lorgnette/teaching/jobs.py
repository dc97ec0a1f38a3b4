"""What the device thread of a `teach` run is asked to do."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class SuggestJob:
    """Suggest for these images. current: the person waits for the one image; queue: they come soon; rest: they have no
    answer at the end; untuned: the person asks what the model says without the adapter, which is no suggestion.
    tuned: with the adapter."""

    images: tuple[int, ...]
    purpose: Literal["current", "queue", "rest", "untuned"]
    tuned: bool


@dataclass(frozen=True, slots=True)
class RoundJob:
    """Train on these answers: (image's number, text), in this order. digest: of their names and texts."""

    number: int
    answers: tuple[tuple[int, str], ...]
    digest: str


@dataclass(frozen=True, slots=True)
class FinishJob:
    """Write what a finished run has."""


Job = SuggestJob | RoundJob | FinishJob
