from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import captions
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


@pytest.mark.parametrize("shown", captions.IMAGE_COLUMNS)
@pytest.mark.parametrize("said", captions.CAPTION_COLUMNS)
def test_every_name_of_the_two_columns(place: RowLocation, cat: Image, shown: str, said: str) -> None:
    [example] = captions.read_record({shown: "cat.jpg", said: " a cat\n", "label": 3}, place)
    turns = (Turn("user", (cat, "COCO Yes:")), Turn("assistant", (" a cat\n",)))
    assert example == Example("identity_2", turns, place.source, 5)


def test_several_captions_are_several_examples(place: RowLocation) -> None:
    made = captions.read_record({"id": 7, "file_name": "cat.jpg", "captions": ["a", "b"]}, place)
    assert [(each.id, each.reference, each.row) for each in made] == [("7_1", "a", 5), ("7_2", "b", 5)]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"file_name": "a.jpg"}, "'caption' is null"),
        ({"caption": "a"}, "'image_path' is null"),
        ({"file_name": "a.jpg", "caption": "a", "text": "b"}, "both 'caption' and 'text'"),
        ({"file_name": "a.jpg", "image_path": "a.jpg", "text": "b"}, "both 'image_path' and 'file_name'"),
        ({"file_name": "a.jpg", "captions": []}, "holds no caption"),
        ({"file_name": "a.jpg", "captions": ["a", 3]}, "'captions', caption 2, is a number"),
        ({"file_name": "a.jpg", "captions": ["a", " "]}, "caption is empty"),
        ({"file_name": "a.jpg", "text": {"en": "a"}}, "is an object"),
        ({"file_name": "a.jpg", "text": "a", "video": "a.mp4"}, "'video'"),
        ({"file_name": "https://x/a.jpg", "text": "a"}, "address"),
    ],
)
def test_broken_records(place: RowLocation, record: dict[str, Any], what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        captions.read_record(record, place)
    assert what in caught.value.message
    assert caught.value.hint


A = Image(Path("/a.jpg"))


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        ([("user", (A, "q")), ("assistant", ("x",))], "other"),
        ([("user", (A,)), ("assistant", ("x",))], "q"),
        ([("user", ("q", A)), ("assistant", ("x",))], "q"),
        ([("user", (A, A, "q")), ("assistant", ("x",))], "q"),
        ([("user", ("q",)), ("assistant", ("x",))], "q"),
        ([("system", ("s",)), ("user", (A, "q")), ("assistant", ("x",))], "q"),
        ([("user", (A, "q")), ("assistant", ("x",)), ("user", ("q",)), ("assistant", ("x",))], "q"),
    ],
)
def test_other_conversations_are_refused(turns: list[tuple[Any, ...]], prompt: str) -> None:
    made = Example("1", tuple(Turn(role, parts) for role, parts in turns), Path("a"), 1)
    with pytest.raises(LorgnetteError, match="captions hold one picture, the question"):
        captions.to_record(made, prompt)


def test_written() -> None:
    for prompt, asked in (("q", (A, "q")), ("", (A,))):
        made = Example("1", (Turn("user", asked), Turn("assistant", ("x",))), Path("a"), 1)
        assert captions.to_record(made, prompt) == {"image_path": "/a.jpg", "caption": "x"}
