from pathlib import Path

import pytest

from lorgnette.data.formats import placeholders
from lorgnette.data.rows import Place
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Turn


def test_only_the_users_placeholders_are_pictures(place: Place, cat: Picture, dog: Picture) -> None:
    drafts = [
        placeholders.draft("user", "a <image> b<image>"),
        placeholders.draft("assistant", "<image> is a word"),
    ]
    made = placeholders.example({"images": ["cat.jpg", "/x/dog.jpg"]}, place, drafts, known=("messages",))
    assert [turn.parts for turn in made.turns] == [("a ", cat, " b", dog), ("<image> is a word",)]


def test_pictures_without_a_placeholder_stand_first_where_nothing_else_can_be_meant(place: Place, cat: Picture) -> None:
    def made(*questions: str) -> Example:
        drafts = [placeholders.draft(role, text) for q in questions for role, text in (("user", q), ("assistant", "a"))]  # type: ignore[arg-type]
        return placeholders.example({"image": "cat.jpg"}, place, drafts, known=())

    assert made("q").turns[0].parts == (cat, "q")
    with pytest.raises(LorgnetteError, match="0 × <image> in the user's text, but 1 in 'images'"):
        made("q", "r")


@pytest.mark.parametrize("key", [key for key in placeholders.UNREAD if key not in ("image", "images")])
def test_what_would_be_lost_is_refused(place: Place, key: str) -> None:
    with pytest.raises(LorgnetteError, match=f"'{key}'"):
        placeholders.example({key: ["x"]}, place, [], known=("messages",))


def test_written(cat: Picture, dog: Picture) -> None:
    turns = (Turn("user", ("<ima", cat, "ge> ", dog)), Turn("assistant", ("a",)))
    assert placeholders.written(Example("1", turns, Path("a"), 1)) == (
        [("user", "<ima<image>ge> <image>"), ("assistant", "a")],
        ["/data/cat.jpg", "/x/dog.jpg"],
    )


@pytest.mark.parametrize("word", ["<image>", "<video>", "<audio>"])
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_text_that_others_would_take_for_a_picture_is_refused(word: str, role: str) -> None:
    made = Example("1", (Turn(role, (f"a {word}",)),), Path("a"), 1)  # type: ignore[arg-type]
    with pytest.raises(LorgnetteError, match=f"holds {word}"):
        placeholders.written(made)
