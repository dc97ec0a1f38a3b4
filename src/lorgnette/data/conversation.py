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
    dialog = turns[1:] if turns and turns[0].role == "system" else turns
    for number, turn in enumerate(turns, start=1):
        if turn.role != "user" and any(isinstance(part, Image) for part in turn.parts):
            raise LorgnetteError(f"turn {number} ({turn.role}) has an image", hint="put images into the user's turns")
    for index, turn in enumerate(dialog):
        expected_role = "assistant" if index % 2 else "user"
        _check_turn(turn, number=index + 1 + len(turns) - len(dialog), expected_role=expected_role)
    if len(dialog) % 2 or not dialog:
        hint = "add the assistant's answer at the end, or remove the row"
        raise LorgnetteError("no assistant turn answers the last user turn" if dialog else "no turns", hint=hint)


def _check_turn(turn: Turn, *, number: int, expected_role: str) -> None:
    if turn.role == "system":
        raise LorgnetteError(f"turn {number} is a system turn", hint="put the system turn first, and only one")
    if turn.role != expected_role:
        raise LorgnetteError(
            f"turn {number} is from the {turn.role}, but it must be from the {expected_role}",
            hint="alternate user and assistant, the user first; join neighboring turns of one role",
        )
    if turn.text.strip() or any(isinstance(part, Image) for part in turn.parts):
        return
    name = "the answer" if expected_role == "assistant" else "the user's turn"
    raise LorgnetteError(f"{name} in turn {number} is empty", hint="write it, or remove the row")
