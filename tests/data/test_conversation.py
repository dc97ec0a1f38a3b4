from pathlib import Path

import pytest

from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.errors import LorgnetteError
from lorgnette.types import Image, Role, Turn

CAT = Image(Path("cat.jpg"))


def talk(*said: tuple[Role, str | Image]) -> list[Turn]:
    return [Turn(role, (part,)) for role, part in said]


def test_merged() -> None:
    assert merge_parts(["", "a", "", "b", CAT, CAT, " ", ""]) == ("ab", CAT, CAT, " ")
    assert merge_parts([]) == ()


@pytest.mark.parametrize(
    "turns",
    [
        talk(("user", "a"), ("assistant", "b")),
        talk(("user", CAT), ("assistant", "b")),
        talk(("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    ],
)
def test_learnable(turns: list[Turn]) -> None:
    check_conversation(turns)


@pytest.mark.parametrize(
    ("turns", "what"),
    [
        ([], "no turns"),
        (talk(("system", "s")), "no turns"),
        (talk(("user", "a")), "no assistant turn"),
        (talk(("user", "a"), ("assistant", "b"), ("user", "c")), "no assistant turn"),
        (talk(("assistant", "b"), ("user", "a")), "turn 1 is the assistant's where the user's is due"),
        (talk(("user", "a"), ("user", "b"), ("assistant", "c")), "turn 2 is the user's"),
        (talk(("user", "a"), ("system", "s"), ("assistant", "c")), "turn 2 is a system turn"),
        (talk(("system", "s"), ("system", "s"), ("user", "a"), ("assistant", "c")), "turn 2 is a system turn"),
        (talk(("user", "a"), ("assistant", " \n")), "the answer in turn 2 is empty"),
        (talk(("user", " "), ("assistant", "b")), "the user's turn in turn 1 is empty"),
        (talk(("user", "a"), ("assistant", CAT)), "turn 2 (assistant) shows a picture"),
        (talk(("system", CAT), ("user", "a"), ("assistant", "b")), "turn 1 (system) shows a picture"),
    ],
)
def test_not_learnable(turns: list[Turn], what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        check_conversation(turns)
    assert what in caught.value.message
    assert caught.value.hint
