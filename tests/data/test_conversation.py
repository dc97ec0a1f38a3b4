from pathlib import Path

import pytest

from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.errors import LorgnetteError
from lorgnette.types import Image, Role, Turn

CAT = Image(Path("cat.jpg"))


def build_turns(*parts: tuple[Role, str | Image]) -> list[Turn]:
    return [Turn(role, (part,)) for role, part in parts]


def test_neighboring_texts_are_joined_and_empty_ones_dropped() -> None:
    assert merge_parts(["", "a", "", "b", CAT, CAT, " ", ""]) == ("ab", CAT, CAT, " ")
    assert merge_parts([]) == ()


@pytest.mark.parametrize(
    "turns",
    [
        build_turns(("user", "a"), ("assistant", "b")),
        build_turns(("user", CAT), ("assistant", "b")),
        build_turns(("system", "<image>"), ("user", "a < image >"), ("assistant", "<image> is a word")),
        [
            Turn("user", ("a",)),
            Turn("assistant", ("b",), has_loss=False),
            *build_turns(("user", "c"), ("assistant", "d")),
        ],
        build_turns(("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    ],
)
def test_a_valid_conversation_passes(turns: list[Turn]) -> None:
    check_conversation(turns)


def test_a_prediction_needs_no_answer() -> None:
    for turns in (build_turns(("user", "a")), build_turns(("user", "a"), ("assistant", "b"), ("user", "c"))):
        check_conversation(turns, needs_answer=False)
    with pytest.raises(LorgnetteError, match="no turns"):
        check_conversation([], needs_answer=False)


def test_in_a_chat_user_and_assistant_speak_in_any_order() -> None:
    user, assistant, system = ("user", "a"), ("assistant", "b"), ("system", "s")
    for turns in ([user, user], [assistant, user], [system, user, assistant, assistant, user]):
        check_conversation(build_turns(*turns), needs_answer=False, alternates=False)
        with pytest.raises(LorgnetteError):
            check_conversation(build_turns(*turns), needs_answer=False)
    for turns in ([], [system], [user, system, user], [user, ("user", " ")], [user, ("assistant", "")]):
        with pytest.raises(LorgnetteError):
            check_conversation(build_turns(*turns), needs_answer=False, alternates=False)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no turns"),
        (build_turns(("system", "s")), "no turns"),
        (build_turns(("user", "a")), "no assistant turn"),
        (build_turns(("user", "a"), ("assistant", "b"), ("user", "c")), "no assistant turn"),
        (build_turns(("assistant", "b"), ("user", "a")), "turn 1 is from the assistant, but it must be from the user"),
        (build_turns(("user", "a"), ("user", "b"), ("assistant", "c")), "turn 2 is from the user"),
        (build_turns(("user", "a"), ("system", "s"), ("assistant", "c")), "turn 2 is a system turn"),
        (build_turns(("system", "s"), ("system", "s"), ("user", "a"), ("assistant", "c")), "turn 2 is a system turn"),
        (build_turns(("user", "a"), ("assistant", " \n")), "the answer in turn 2 is empty"),
        (build_turns(("user", " "), ("assistant", "b")), "the user's turn in turn 1 is empty"),
        (build_turns(("user", "a"), ("assistant", CAT)), "turn 2 (assistant) has an image"),
        (build_turns(("system", CAT), ("user", "a"), ("assistant", "b")), "turn 1 (system) has an image"),
        (
            build_turns(("user", "see <image>"), ("assistant", "b")),
            "turn 1 contains <image>, which stands for no image",
        ),
        (build_turns(("user", "<ImageHere>a"), ("assistant", "b")), "turn 1 contains <ImageHere>"),
        ([Turn("user", (CAT, "<|image_pad|>")), Turn("assistant", ("b",))], "turn 1 contains <|image_pad|>"),
        ([Turn("user", ("a",)), Turn("assistant", ("b",), has_loss=False)], "marks every answer as not to be learned"),
    ],
)
def test_an_invalid_conversation_is_refused(turns: list[Turn], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        check_conversation(turns)
    assert message in caught.value.message
    assert caught.value.hint
