from typing import Any

import pytest

from lorgnette.data.formats import queries, read_record
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Image


def read_parts(record: dict[str, Any], location: RowLocation) -> list[tuple[Any, ...]]:
    [example] = read_record(record, location)
    return [(turn.role, *turn.parts) for turn in example.turns]


def test_ms_swifts_query_is_read(location: RowLocation, cat: Image, dog: Image) -> None:
    record = {"query": "<img>cat.jpg</img>5<img>/x/dog.jpg</img>", "response": "6", "history": [["hello", "1"]]}
    assert read_parts(record, location) == [
        ("user", "hello"),
        ("assistant", "1"),
        ("user", cat, "5", dog),
        ("assistant", "6"),
    ]
    record = {"query": "5", "response": "6", "history": [], "images": ["cat.jpg"], "system": "s"}
    assert read_parts(record, location) == [("system", "s"), ("user", cat, "5"), ("assistant", "6")]
    record = {"query": "b<image>", "response": "6", "history": [["<image>a", "<img>is text</img>"]]}
    assert read_parts(record | {"images": ["cat.jpg", "/x/dog.jpg"]}, location) == [
        ("user", cat, "a"),
        ("assistant", "<img>is text</img>"),
        ("user", "b", dog),
        ("assistant", "6"),
    ]


def test_llama_factorys_instruction_is_read(location: RowLocation, cat: Image) -> None:
    record = {"instruction": "<image>what?", "input": "", "output": "a", "images": ["cat.jpg"]}
    assert read_parts(record, location) == [("user", cat, "what?"), ("assistant", "a")]
    record = {"instruction": "sum up", "input": "a text", "output": "a", "history": [["q", "b"]]}
    assert read_parts(record, location) == [
        ("user", "q"),
        ("assistant", "b"),
        ("user", "sum up\na text"),
        ("assistant", "a"),
    ]


def test_ms_swifts_pairs_are_read(location: RowLocation, cat: Image) -> None:
    record = {"system": "s", "conversation": [{"human": "<image>q", "assistant": "a"}], "image": "cat.jpg"}
    assert read_parts(record, location) == [("system", "s"), ("user", cat, "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "q", "response": 3}, "the answer is a number"),
        ({"query": "<image>q", "response": "a"}, "1 × <image> in the user's text, but 0"),
        ({"query": "q", "response": "a", "label": False}, "marked as not to be learned (label)"),
        ({"query": None, "response": "a"}, "the question is null"),
        ({"query": "q", "response": " "}, "answer in turn 2 is empty"),
        ({"query": "q", "response": "a", "history": ["q"]}, "not a list of pairs"),
        ({"query": "q", "response": "a", "history": {"q": "a"}}, "'history' is an object"),
        ({"query": "q", "response": "a", "history": [["q", "a"]], "images": ["a.jpg"]}, "0 × <image>"),
        ({"query": "<img>https://x/a.jpg</img>q", "response": "a"}, "URL"),
        ({"query": "<img></img>q", "response": "a"}, "path is empty"),
        ({"query": "q", "response": "a", "rejected_response": "b"}, "'rejected_response'"),
        ({"instruction": 3, "output": "a"}, "'instruction' is a number"),
        ({"instruction": "q", "input": ["x"], "output": "a"}, "'input' is a list"),
        ({"conversation": [{"human": "q"}, {"human": "q", "assistant": "a"}]}, "the answer is null"),
        ({"conversation": ["q"]}, "item 1 is text"),
    ],
)
def test_broken_records_are_refused(location: RowLocation, record: dict[str, Any], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_record(record, location)
    assert message in caught.value.message
    assert caught.value.hint


def test_an_image_under_another_name_is_read(location: RowLocation, cat: Image) -> None:
    """bugs/picture-beside-messages"""
    for record in ({"query": "q", "response": "a"}, {"instruction": "q", "output": "a"}):
        assert read_parts({**record, "image_path": "cat.jpg"}, location) == [("user", cat, "q"), ("assistant", "a")]


def test_the_last_question_may_have_no_answer(location: RowLocation) -> None:
    """bugs/predict-unanswered"""
    for record in ({"query": "q"}, {"instruction": "q"}, {"conversation": [{"human": "q"}]}):
        assert read_parts(record, location) == [("user", "q")]
    turns = read_parts({"query": "q", "history": [["x", "y"]]}, location)
    assert turns == [("user", "x"), ("assistant", "y"), ("user", "q")]


def test_a_marked_pair_has_no_loss_and_other_keys_are_named(location: RowLocation) -> None:
    pairs = [{"human": "q", "assistant": "no", "loss": False, "score": 1}, {"human": "q", "assistant": "a"}]
    [example] = read_record({"conversation": pairs, "source": "web"}, location)
    assert [turn.has_loss for turn in example.turns] == [True, False, True, True]
    assert example.unread_keys == ("source", "conversation[].score")


def test_each_format_has_its_reader(location: RowLocation) -> None:
    assert queries.read_query({"query": "q", "response": "a"}, location).reference == "a"
    assert queries.read_alpaca({"instruction": "q", "output": "a"}, location).reference == "a"
    assert queries.read_conversation({"conversation": [{"human": "q", "assistant": "a"}]}, location).reference == "a"
