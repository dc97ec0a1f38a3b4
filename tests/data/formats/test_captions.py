from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import captions
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


@pytest.mark.parametrize("image_column", captions.IMAGE_COLUMNS)
@pytest.mark.parametrize("caption_column", captions.CAPTION_COLUMNS)
def test_every_column_name_is_read(location: RowLocation, cat: Image, image_column: str, caption_column: str) -> None:
    [example] = captions.read_record({image_column: "cat.jpg", caption_column: " a cat\n", "label": 3}, location)
    turns = (Turn("user", (cat, "COCO Yes:")), Turn("assistant", ("a cat",)))
    assert example == Example("identity_2", turns, location.source, 5)
    assert (example.unread_keys, example.is_trimmed) == (("label",), True)


def test_a_row_may_have_its_own_question(location: RowLocation, cat: Image) -> None:
    """bugs/csv-question-column: a question was dropped, and the prompt of all rows was asked instead."""
    for question, answer in (("question", "answer"), ("Prompt", "caption"), ("instruction", "response")):
        record = {"image_path": "cat.jpg", question: " what? ", answer: "a cat", "system": "Be brief."}
        [example] = captions.read_record(record, location)
        turns = Turn("system", ("Be brief.",)), Turn("user", (cat, "what?")), Turn("assistant", ("a cat",))
        assert (example.turns, example.unread_keys, example.is_trimmed) == (turns, (), True)


def test_beside_a_question_the_answer_is_meant(location: RowLocation) -> None:
    record = {"file_name": "a.jpg", "question": "what?", "answer": "a cat", "caption": "a photo"}
    [example] = captions.read_record(record, location)
    assert (example.reference, example.unread_keys) == ("a cat", ("caption",))


def test_a_row_without_a_caption_is_a_question(location: RowLocation, cat: Image) -> None:
    """bugs/predict-unanswered"""
    [plain] = captions.read_record({"image_path": "cat.jpg"}, location)
    [asked] = captions.read_record({"image_path": "cat.jpg", "question": "what?"}, location)
    assert plain.turns == (Turn("user", (cat, "COCO Yes:")),)
    assert asked.turns == (Turn("user", (cat, "what?")),)
    assert captions.to_record(plain, "COCO Yes:") == {"image_path": "/data/cat.jpg"}


def test_blanks_stay_if_the_options_say_so(location: RowLocation) -> None:
    [example] = captions.read_record({"file_name": "a.jpg", "text": " a cat\r\n"}, location._replace(trim=False))
    assert (example.reference, example.is_trimmed) == (" a cat\r\n", False)
    [example] = captions.read_record({"file_name": "a.jpg", "text": "a cat"}, location)
    assert not example.is_trimmed


def test_several_captions_are_several_examples(location: RowLocation) -> None:
    examples = captions.read_record({"id": 7, "file_name": "cat.jpg", "captions": ["a", "b"]}, location)
    assert [(example.id, example.reference, example.row) for example in examples] == [("7_1", "a", 5), ("7_2", "b", 5)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"file_name": "a.jpg", "caption": None}, "'caption' is null"),
        ({"file_name": "a.jpg", "title": "a"}, "no 'caption', only 'file_name', 'title'"),
        ({"file_name": "a.jpg", "text": "a", "question": " "}, "'question' is empty"),
        ({"file_name": "a.jpg", "text": "a", "question": ["b"]}, "'question' is a list"),
        ({"file_name": "a.jpg", "text": "a", "question": "b", "prompt": "c"}, "'prompt', which this format"),
        ({"file_name": "a.jpg", "text": "a", "answer": "b"}, "'answer', which this format does not read"),
        ({"file_name": "a.jpg", "text": "a", "images": ["b.jpg"]}, "'images', which this format does not read"),
        ({"file_name": "a.jpg", "text": "a", "loss_weight": 0}, "marked as not to be learned (loss_weight)"),
        ({"file_name": "a.jpg", "text": "a", "loss_weight": 0.5}, "'loss_weight' of the row is 0.5"),
        ({"caption": "a"}, "'image_path' is null"),
        ({"file_name": "a.jpg", "caption": "a", "text": "b"}, "both 'caption' and 'text'"),
        ({"file_name": "a.jpg", "image_path": "a.jpg", "text": "b"}, "both 'image_path' and 'file_name'"),
        ({"file_name": "a.jpg", "captions": []}, "has no caption"),
        ({"file_name": "a.jpg", "captions": ["a", 3]}, "'captions', caption 2, is a number"),
        ({"file_name": "a.jpg", "captions": ["a", " "]}, "caption is empty"),
        ({"file_name": "a.jpg", "text": {"en": "a"}}, "is an object"),
        ({"file_name": "a.jpg", "text": "a", "video": "a.mp4"}, "'video'"),
        ({"file_name": "https://x/a.jpg", "text": "a"}, "URL"),
    ],
)
def test_broken_records_are_refused(location: RowLocation, record: dict[str, Any], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        captions.read_record(record, location)
    assert message in caught.value.message
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
        ([("system", ("s",)), ("user", (A, "r")), ("assistant", ("x",))], "q"),
        ([("system", ("s", A)), ("user", (A, "q")), ("assistant", ("x",))], "q"),
        ([("user", (A, "q")), ("assistant", ("x",)), ("user", ("q",)), ("assistant", ("x",))], "q"),
    ],
)
def test_other_conversations_cannot_be_written(turns: list[tuple[Any, ...]], prompt: str) -> None:
    example = Example("1", tuple(Turn(role, parts) for role, parts in turns), Path("a"), 1)
    with pytest.raises(LorgnetteError, match="captions hold one image, the question"):
        captions.to_record(example, prompt)


def test_a_caption_is_written_without_the_prompt() -> None:
    for prompt, parts in (("q", (A, "q")), ("", (A,))):
        example = Example("1", (Turn("user", parts), Turn("assistant", ("x",))), Path("a"), 1)
        assert captions.to_record(example, prompt) == {"image_path": "/a.jpg", "caption": "x"}
        with_system = Example("1", (Turn("system", ("s",)), *example.turns), Path("a"), 1)
        record = captions.to_record(with_system, prompt)
        assert record == {"image_path": "/a.jpg", "caption": "x", "system": "s"}
        [restored] = captions.read_record(record, RowLocation(Path("a"), 1, 1, prompt=prompt))
        assert restored.turns == with_system.turns
