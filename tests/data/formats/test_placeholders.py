from pathlib import Path

import pytest

from lorgnette.data.formats import placeholders
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


def test_only_the_users_placeholders_become_images(location: RowLocation, cat: Image, dog: Image) -> None:
    drafts = [
        placeholders.split_placeholders("user", "a <image> b<image>"),
        placeholders.split_placeholders("assistant", "<image> is a word"),
    ]
    example = placeholders.build_example(
        {"images": ["cat.jpg", "/x/dog.jpg"]}, location, drafts, read_keys=("messages",)
    )
    assert [turn.parts for turn in example.turns] == [("a ", cat, " b", dog), ("<image> is a word",)]


def test_images_without_placeholders_come_first_in_a_single_user_turn(location: RowLocation, cat: Image) -> None:
    def build_example(*questions: str) -> Example:
        drafts = [
            placeholders.split_placeholders(role, text)
            for q in questions
            for role, text in (("user", q), ("assistant", "a"))
        ]  # type: ignore[arg-type]
        return placeholders.build_example({"image": "cat.jpg"}, location, drafts, read_keys=())

    assert build_example("q").turns[0].parts == (cat, "q")
    with pytest.raises(LorgnetteError, match="0 × <image> in the user's text, but 1 in 'image'"):
        build_example("q", "r")


@pytest.mark.parametrize(
    "key",
    ["videos", "audio", "objects", "bbox", "tools", "chosen", "rejected_response", "prompt", "Question", "history"],
)
def test_content_that_training_would_miss_is_refused(location: RowLocation, key: str) -> None:
    with pytest.raises(LorgnetteError, match=f"'{key}'"):
        placeholders.build_example({key: ["x"]}, location, [], read_keys=("messages",))


def test_turns_are_written_with_placeholders(cat: Image, dog: Image) -> None:
    turns = (Turn("user", ("<ima", cat, "ge> ", dog)), Turn("assistant", ("a",)))
    assert placeholders.format_turns(Example("1", turns, Path("a"), 1)) == (
        [("user", "<ima<image>ge> <image>"), ("assistant", "a")],
        ["/data/cat.jpg", "/x/dog.jpg"],
        {},
    )


@pytest.mark.parametrize("word", ["<image>", "<video>", "<audio>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_text_with_a_placeholder_cannot_be_written(word: str, role: str) -> None:
    example = Example("1", (Turn(role, (f"a {word}",)),), Path("a"), 1)  # type: ignore[arg-type]
    with pytest.raises(LorgnetteError, match=f"contains {word}"):
        placeholders.format_turns(example)
