from pathlib import Path

import pytest

from lorgnette.data.formats import placeholders
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


def test_only_the_users_placeholders_are_pictures(place: RowLocation, cat: Image, dog: Image) -> None:
    drafts = [
        placeholders.split_placeholders("user", "a <image> b<image>"),
        placeholders.split_placeholders("assistant", "<image> is a word"),
    ]
    made = placeholders.build_example({"images": ["cat.jpg", "/x/dog.jpg"]}, place, drafts, read_keys=("messages",))
    assert [turn.parts for turn in made.turns] == [("a ", cat, " b", dog), ("<image> is a word",)]


def test_pictures_without_a_placeholder_stand_first_where_nothing_else_can_be_meant(
    place: RowLocation, cat: Image
) -> None:
    def made(*questions: str) -> Example:
        drafts = [
            placeholders.split_placeholders(role, text)
            for q in questions
            for role, text in (("user", q), ("assistant", "a"))
        ]  # type: ignore[arg-type]
        return placeholders.build_example({"image": "cat.jpg"}, place, drafts, read_keys=())

    assert made("q").turns[0].parts == (cat, "q")
    with pytest.raises(LorgnetteError, match="0 × <image> in the user's text, but 1 in 'images'"):
        made("q", "r")


@pytest.mark.parametrize("key", [key for key in placeholders.UNREAD_KEYS if key not in ("image", "images")])
def test_what_would_be_lost_is_refused(place: RowLocation, key: str) -> None:
    with pytest.raises(LorgnetteError, match=f"'{key}'"):
        placeholders.build_example({key: ["x"]}, place, [], read_keys=("messages",))


def test_written(cat: Image, dog: Image) -> None:
    turns = (Turn("user", ("<ima", cat, "ge> ", dog)), Turn("assistant", ("a",)))
    assert placeholders.format_turns(Example("1", turns, Path("a"), 1)) == (
        [("user", "<ima<image>ge> <image>"), ("assistant", "a")],
        ["/data/cat.jpg", "/x/dog.jpg"],
    )


@pytest.mark.parametrize("word", ["<image>", "<video>", "<audio>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_text_that_others_would_take_for_a_picture_is_refused(word: str, role: str) -> None:
    made = Example("1", (Turn(role, (f"a {word}",)),), Path("a"), 1)  # type: ignore[arg-type]
    with pytest.raises(LorgnetteError, match=f"holds {word}"):
        placeholders.format_turns(made)
