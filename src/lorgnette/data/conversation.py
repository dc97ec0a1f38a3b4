"""Checks that a conversation can be trained on: roles in order, no empty answer.

Knows nothing about files and data formats, nor whether an image can be opened.
"""

from collections.abc import Iterable, Sequence

from lorgnette.errors import LorgnetteError
from lorgnette.types import Image, Turn


def merge_parts(parts: Iterable[str | Image]) -> tuple[str | Image, ...]:
    """The parts without empty texts and with neighboring texts joined, so that equal turns compare equal."""
    result: list[str | Image] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, str) and isinstance(last, str):
            result[-1] = last + part
        elif part != "":
            result.append(part)
    return tuple(result)


def check_conversation(turns: Sequence[Turn]) -> None:
    """Raise LorgnetteError unless the turns can be trained on.

    At most one system turn, first; then user and assistant in alternation, ending with the assistant; no empty turn (an
    empty answer would teach the model to be silent); images only in the user's turns.
    """
    has_system = bool(turns) and turns[0].role == "system"
    for number, turn in enumerate(turns, start=1):
        has_image = any(isinstance(part, Image) for part in turn.parts)
        if turn.role != "user" and has_image:
            raise LorgnetteError(f"turn {number} ({turn.role}) has an image", hint="put images into the user's turns")
        if has_system and number == 1:
            continue
        if turn.role == "system":
            raise LorgnetteError(f"turn {number} is a system turn", hint="put the system turn first, and only one")
        expected_role = "user" if (number - has_system) % 2 else "assistant"
        if turn.role != expected_role:
            message = f"turn {number} is from the {turn.role}, but it must be from the {expected_role}"
            hint = "alternate user and assistant, the user first; join neighboring turns of one role"
            raise LorgnetteError(message, hint=hint)
        if not turn.text.strip() and not has_image:
            name = "the answer" if turn.role == "assistant" else "the user's turn"
            raise LorgnetteError(f"{name} in turn {number} is empty", hint="write it, or remove the row")
    num_dialog = len(turns) - has_system
    if num_dialog % 2 or not num_dialog:
        hint = "add the assistant's answer at the end, or remove the row"
        raise LorgnetteError("no assistant turn answers the last user turn" if num_dialog else "no turns", hint=hint)
