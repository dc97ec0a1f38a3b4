"""The order and substance a conversation must have to be learned from.

Knows nothing about files and forms; whether a picture can be read is another's question.
"""

from collections.abc import Iterable, Sequence

from lorgnette.errors import LorgnetteError
from lorgnette.types import Image, Turn


def merge_parts(parts: Iterable[str | Image]) -> tuple[str | Image, ...]:
    """Empty texts dropped, neighbouring texts joined: one way to write what the model sees the same."""
    result: list[str | Image] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, str) and isinstance(last, str):
            result[-1] = last + part
        elif part != "":
            result.append(part)
    return tuple(result)


def check_conversation(turns: Sequence[Turn]) -> None:
    """At most one system turn, first; then user and assistant by turns, ending with an assistant's answer; every
    answer says something; pictures are shown by the user. (An empty answer would teach the model to be silent.)"""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for number, turn in enumerate(turns, start=1):
        if turn.role != "user" and any(isinstance(part, Image) for part in turn.parts):
            raise LorgnetteError(
                f"turn {number} ({turn.role}) shows a picture", hint="show pictures in the user's turns"
            )
    for place, turn in enumerate(spoken):
        _check_turn(
            turn, number=place + 1 + len(turns) - len(spoken), expected_role="assistant" if place % 2 else "user"
        )
    if len(spoken) % 2 or not spoken:
        remedy = "add the assistant's answer at the end, or remove the row"
        raise LorgnetteError("no assistant turn answers the last user turn" if spoken else "no turns", hint=remedy)


def _check_turn(turn: Turn, *, number: int, expected_role: str) -> None:
    if turn.role == "system":
        raise LorgnetteError(f"turn {number} is a system turn", hint="put the system turn first, and only one")
    if turn.role != expected_role:
        raise LorgnetteError(
            f"turn {number} is the {turn.role}'s where the {expected_role}'s is due",
            hint="let user and assistant take turns, the user first; join neighbouring turns of one speaker",
        )
    if turn.text.strip() or any(isinstance(part, Image) for part in turn.parts):
        return
    what = "the answer" if expected_role == "assistant" else "the user's turn"
    raise LorgnetteError(f"{what} in turn {number} is empty", hint="write it, or remove the row")
