"""Checks that a conversation can be trained on: roles in order, no empty answer, at least one answer with loss.

Knows nothing about files and data formats, nor whether an image can be opened.
"""

import re
from collections.abc import Iterable, Sequence

from lorgnette.errors import LorgnetteError
from lorgnette.types import Image, Turn, TurnPart

_IMAGE_MARKER = re.compile(
    r"<(?:image|video|audio|img|ImageHere|image_placeholder|start_of_image|IMG_CONTEXT)>"
    r"|<\|(?:image|image_\d+|image_pad|video_pad|vision_start|vision_end)\|>"
)
"""What stands for an image in the text of one format or another."""


def find_image_marker(text: str) -> str | None:
    """What stands for an image in the text, first of all."""
    match = _IMAGE_MARKER.search(text)
    return match and match[0]


def merge_parts(parts: Iterable[TurnPart]) -> tuple[TurnPart, ...]:
    """The parts without empty texts and with neighboring texts joined, so that equal turns compare equal."""
    result: list[TurnPart] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, str) and isinstance(last, str):
            result[-1] = last + part
        elif part != "":
            result.append(part)
    return tuple(result)


def check_conversation(turns: Sequence[Turn], *, needs_answer: bool = True, alternates: bool = True) -> None:
    """Raise LorgnetteError unless the turns can be trained on.

    At most one system turn, first; then user and assistant in alternation, ending with the assistant; no empty turn (an
    empty answer would teach the model to be silent); images only in the user's turns, and no marker of an image that is
    not there; an answer with loss. needs_answer: False for a prediction, where the user may have the last word.
    alternates: False for a chat, where user and assistant speak in any order; no answer is learned there.
    """
    has_system = bool(turns) and turns[0].role == "system"
    for number, turn in enumerate(turns, start=1):
        _check_parts(turn, number)
        if has_system and number == 1:
            continue
        if turn.role == "system":
            raise LorgnetteError(f"turn {number} is a system turn", hint="put the system turn first, and only one")
        expected_role = "user" if (number - has_system) % 2 else "assistant"
        if alternates and turn.role != expected_role:
            message = f"turn {number} is from the {turn.role}, but it must be from the {expected_role}"
            hint = "alternate user and assistant, the user first; join neighboring turns of one role"
            raise LorgnetteError(message, hint=hint)
        if not turn.text.strip() and not any(isinstance(part, Image) for part in turn.parts):
            name = "the answer" if turn.role == "assistant" else "the user's turn"
            raise LorgnetteError(f"{name} in turn {number} is empty", hint="write it, or remove the row")
    num_dialog = len(turns) - has_system
    if not num_dialog or (num_dialog % 2 and needs_answer):
        hint = "add the assistant's answer at the end, or remove the row"
        raise LorgnetteError("no assistant turn answers the last user turn" if num_dialog else "no turns", hint=hint)
    if alternates and not num_dialog % 2 and not any(turn.role == "assistant" and turn.has_loss for turn in turns):
        hint = "mark an answer that is to be learned, or remove the row"
        raise LorgnetteError("the row marks every answer as not to be learned", hint=hint)


def _check_parts(turn: Turn, number: int) -> None:
    """Images are the user's, and each of the user's markers of images has its image."""
    if turn.role != "user" and any(isinstance(part, Image) for part in turn.parts):
        raise LorgnetteError(f"turn {number} ({turn.role}) has an image", hint="put images into the user's turns")
    for part in turn.parts if turn.role == "user" else ():
        if isinstance(part, str) and (marker := find_image_marker(part)):
            message = f"turn {number} contains {marker}, which stands for no image of the row"
            hint = "give the row this image under a key that its format reads, or remove the marker"
            raise LorgnetteError(message, hint=hint)
