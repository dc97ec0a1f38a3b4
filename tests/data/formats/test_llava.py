from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import llava
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


def build_record(user: Any, answer: Any = "yes", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": user}, {"from": "gpt", "value": answer}], **more}


@pytest.mark.parametrize("key", ["image", "images"])
def test_images_replace_their_placeholders(location: RowLocation, cat: Image, dog: Image, key: str) -> None:
    single = llava.read_record(build_record("what?\n<image>", id="000", **{key: "cat.jpg"}), location)
    turns = (Turn("user", ("what?\n", cat)), Turn("assistant", ("yes",)))
    assert single == Example("000", turns, location.source, 5)
    pair = llava.read_record(build_record("<image>\n<image>\n", **{key: ["cat.jpg", "/x/dog.jpg"]}), location)
    assert pair.turns[0].parts == (cat, "\n", dog, "\n")


def test_a_marked_answer_has_no_loss(location: RowLocation) -> None:
    record: dict[str, Any] = {
        "conversations": [*build_record("q", "no")["conversations"], *build_record("r")["conversations"]]
    }
    record["conversations"][1]["train"] = False
    example = llava.read_record(record, location)
    assert [turn.has_loss for turn in example.turns] == [True, False, True, True]


@pytest.mark.parametrize("key", ["image_path", "img", "file_name", "picture", "image_url"])
def test_an_image_under_another_name_is_read(location: RowLocation, cat: Image, key: str) -> None:
    """bugs/picture-beside-messages"""
    for question in ("<image>what?", "what?"):
        example = llava.read_record(build_record(question, **{key: "cat.jpg"}), location)
        assert example.turns[0].parts == (cat, "what?")
    example = llava.read_record(build_record("<image>what?", image="cat.jpg", **{key: "elsewhere.jpg"}), location)
    assert (example.images, example.unread_keys) == ((cat,), (key,))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (build_record("<image><image>", image="a.jpg"), "2 × <image> in the user's text, but 1"),
        (build_record("<image>", image=None), "1 × <image> in the user's text, but 0"),
        (build_record("<video>\nq", video="a.mp4", image=[]), "'video'; only images and text"),
        (build_record("<image>", image="a.jpg", answer=None), "turn 2's 'value' is null"),
        (build_record("<image><|vision_start|>x<|vision_end|>", image="a.jpg"), "contains <|vision_start|>"),
        (build_record("q", image_path="a.jpg", photo="b.jpg"), "both 'image_path' and 'photo'"),
        (build_record("<image>", image=[3]), "image 1 is a number"),
        ({"image": "a.jpg", "conversations": [{"from": "tool", "value": "q"}]}, "from 'tool'"),
    ],
)
def test_broken_records_are_refused(location: RowLocation, broken: dict[str, Any], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        llava.read_record(broken, location)
    assert message in caught.value.message
    assert caught.value.hint


def test_the_record_is_written_with_placeholders(cat: Image, dog: Image) -> None:
    def build_example(*parts: str | Image) -> Example:
        return Example("7", (Turn("user", parts), Turn("assistant", ("yes",))), Path("a"), 1)

    assert llava.to_record(build_example(cat, "what?")) == build_record("<image>what?", id="7", image="/data/cat.jpg")
    assert llava.to_record(build_example(cat, dog)) == build_record(
        "<image><image>", id="7", image=["/data/cat.jpg", "/x/dog.jpg"]
    )
    assert llava.to_record(build_example("what?")) == build_record("what?", id="7")


def test_a_system_turn_is_refused() -> None:
    with pytest.raises(LorgnetteError, match="no system turn"):
        llava.to_record(Example("7", (Turn("system", ("s",)),), Path("a"), 1))
