from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import llava
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


def record(user: Any, answer: Any = "yes", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": user}, {"from": "gpt", "value": answer}], **more}


@pytest.mark.parametrize("key", ["image", "images"])
def test_pictures_stand_where_the_text_says(place: RowLocation, cat: Image, dog: Image, key: str) -> None:
    one = llava.read_record(record("what?\n<image>", id="000", **{key: "cat.jpg"}), place)
    turns = (Turn("user", ("what?\n", cat)), Turn("assistant", ("yes",)))
    assert one == Example("000", turns, place.source, 5)
    two = llava.read_record(record("<image>\n<image>\n", **{key: ["cat.jpg", "/x/dog.jpg"]}), place)
    assert two.turns[0].parts == (cat, "\n", dog, "\n")


def test_the_tutorials_markers_are_text_here(place: RowLocation, cat: Image) -> None:
    made = llava.read_record(record("<image><|vision_start|>x<|vision_end|>", image="cat.jpg"), place)
    assert made.turns[0].parts == (cat, "<|vision_start|>x<|vision_end|>")


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (record("<image><image>", image="a.jpg"), "2 × <image> in the user's text, but 1"),
        (record("<image>", image=None), "1 × <image> in the user's text, but 0"),
        (record("<video>\nq", video="a.mp4", image=[]), "'video'; only pictures and text"),
        (record("<image>", image="a.jpg", answer=None), "turn 2's 'value' is null"),
        (record("<image>", image=[3]), "image 1 is a number"),
        ({"image": "a.jpg", "conversations": [{"from": "tool", "value": "q"}]}, "from 'tool'"),
    ],
)
def test_broken_records(place: RowLocation, broken: dict[str, Any], what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        llava.read_record(broken, place)
    assert what in caught.value.message
    assert caught.value.hint


def test_written(cat: Image, dog: Image) -> None:
    def made(*parts: str | Image) -> Example:
        return Example("7", (Turn("user", parts), Turn("assistant", ("yes",))), Path("a"), 1)

    assert llava.to_record(made(cat, "what?")) == record("<image>what?", id="7", image="/data/cat.jpg")
    assert llava.to_record(made(cat, dog)) == record("<image><image>", id="7", image=["/data/cat.jpg", "/x/dog.jpg"])
    assert llava.to_record(made("what?")) == record("what?", id="7")


def test_it_knows_no_system_turn() -> None:
    with pytest.raises(LorgnetteError, match="no system turn"):
        llava.to_record(Example("7", (Turn("system", ("s",)),), Path("a"), 1))
