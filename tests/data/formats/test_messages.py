from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import messages
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

LOCATION = RowLocation(Path("/data/a.jsonl"), 5, 2)
A, B = Image(Path("/data/a.jpg")), Image(Path("/x/b.jpg"))


def build_record(user: Any, *images: str, answer: Any = "yes", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": list(images), **more}


def mark_answers(*marks: dict[str, Any]) -> dict[str, Any]:
    """A conversation in which each answer has a mark."""
    turns = [({"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **mark}) for mark in marks]
    return {"messages": [message for pair in turns for message in pair]}


@pytest.mark.parametrize(
    ("mark", "has_loss"),
    [
        ({"loss": False}, False),
        ({"loss": True}, True),
        ({"loss": None}, True),
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"loss_weight": 0.0}, False),
        ({"loss_weight": 1.0, "loss": True}, True),
        ({"train": False}, False),
        ({"training": "false"}, False),
    ],
)
def test_marks_say_which_answers_are_learned(mark: dict[str, Any], has_loss: bool) -> None:
    """bugs/loss-false: every answer was learned."""
    example = messages.read_record(mark_answers(mark, {}), LOCATION)
    assert [turn.has_loss for turn in example.turns] == [True, has_loss, True, True]
    assert example.unread_keys == ()


def test_a_row_of_llama_factorys_v1_is_read() -> None:
    turns = [
        {"role": "system", "content": [{"type": "text", "value": "s"}], "loss_weight": 0.0},
        {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
    ]
    assert [turn.text for turn in messages.read_record({"messages": turns}, LOCATION).turns] == ["s", "q", "a"]


def test_a_good_row_of_kto_is_read() -> None:
    assert messages.read_record(build_record("q", label=True), LOCATION).unread_keys == ()
    assert messages.read_record(build_record("q", label="cat"), LOCATION).unread_keys == ("label",)


def test_keys_that_are_not_read_are_named() -> None:
    part = {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}, "cache_control": {"type": "x"}}
    record = {"messages": build_record([part])["messages"], "license": "CC0", "source": "", "score": 0, "note": None}
    record["messages"][1]["name"] = "Ann"
    keys = ("messages[].content[].cache_control", "messages[].content[].image_url.detail", "messages[].name")
    example = messages.read_record(record, LOCATION)
    assert sorted(example.unread_keys) == sorted(("license", "score", *keys))
    assert messages.read_record(record, LOCATION).unread_keys is example.unread_keys


def test_a_row_without_an_answer_is_a_question() -> None:
    """bugs/predict-unanswered"""
    [turn] = messages.read_record({"messages": [{"role": "user", "content": "q"}]}, LOCATION).turns
    assert turn == Turn("user", ("q",))


def test_a_mark_is_written_in_each_formats_way() -> None:
    turns = (Turn("user", ("q",)), Turn("assistant", ("no",), has_loss=False), Turn("user", ("q",)))
    example = Example("1", (*turns, Turn("assistant", ("a",))), LOCATION.source, 1)
    record = messages.to_record(example, {"loss": False})
    assert record["messages"][1] == {"role": "assistant", "content": "no", "loss": False}
    assert "loss" not in record["messages"][3]
    assert messages.read_record(record, LOCATION).turns == example.turns


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (build_record("<image>\nwhat?", "a.jpg"), (A, "\nwhat?")),
        (build_record("see <image> and <image>.", "a.jpg", "/x/b.jpg"), ("see ", A, " and ", B, ".")),
        (build_record("<image><image>", "a.jpg", "/x/b.jpg"), (A, B)),
        (build_record("what?", "a.jpg", "/x/b.jpg"), (A, B, "what?")),
        (build_record("<|im_end|>"), ("<|im_end|>",)),
        (build_record("<image>what?", image_path="a.jpg"), (A, "what?")),
        (build_record("what?", picture={"path": "a.jpg"}), (A, "what?")),
        (build_record([{"type": "text", "text": "what? "}, {"type": "image", "image": "a.jpg"}]), ("what? ", A)),
        (build_record([{"type": "image", "path": "a.jpg"}, {"type": "image", "url": "file:///x/b.jpg"}]), (A, B)),
        (build_record([{"type": "image"}, {"type": "text", "text": "what?"}], "a.jpg"), (A, "what?")),
        (build_record([{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "what?"}]), (A, "what?")),
        (build_record([{"type": "image", "image": "a.jpg"}], file_name="elsewhere.jpg"), (A,)),
        (build_record([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a.jpg"), (A, "ab")),
        (build_record([{"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}}]), (A,)),
        (build_record([{"type": "image_url", "image_url": "a.jpg"}]), (A,)),
        (build_record("<image>what?", image="a.jpg"), (A, "what?")),
        (build_record("<image><image>", image=["a.jpg", {"path": "/x/b.jpg", "bytes": None}]), (A, B)),
    ],
)
def test_images_replace_their_placeholders(raw: dict[str, Any], expected: tuple[str | Image, ...]) -> None:
    example = messages.read_record(raw, LOCATION)
    assert example == Example(
        "identity_2", (Turn("user", expected), Turn("assistant", ("yes",))), LOCATION.source, LOCATION.row
    )


def test_several_turns_and_a_system_turn_are_read() -> None:
    turns = [
        ("system", "be brief <image>"),
        ("user", "<image>one"),
        ("assistant", "<image> is a word"),
        ("user", "<image>two"),
        ("assistant", [{"type": "text", "text": "b"}]),
    ]
    raw = {
        "id": 9,
        "messages": [{"role": role, "content": content} for role, content in turns],
        "images": ["a.jpg", "/x/b.jpg"],
    }
    example = messages.read_record(raw, LOCATION)
    assert example.id == "9"
    assert [turn.parts for turn in example.turns] == [
        ("be brief <image>",),
        (A, "one"),
        ("<image> is a word",),
        (B, "two"),
        ("b",),
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (build_record("<image><image>", "a.jpg"), "2 × <image> in the user's text, but 1 in 'images'"),
        (build_record("<image>", "a.jpg", "b.jpg"), "1 × <image> in the user's text, but 2 in 'images'"),
        ({"messages": build_record("<image>")["messages"]}, "1 × <image> in the user's text, but 0"),
        (build_record([{"type": "image", "image": "a.jpg"}], "b.jpg"), "0 × <image> in the user's text, but 1"),
        (
            {"messages": build_record("a")["messages"] + build_record("b")["messages"], "images": ["a.jpg"]},
            "0 × <image> in the user's text, but 1",
        ),
        (
            build_record("<image>", image_path=["a.jpg", "b.jpg"]),
            "1 × <image> in the user's text, but 2 in 'image_path'",
        ),
        (build_record([{"type": "image"}, {"type": "text", "text": "<image>"}], "a.jpg"), "turn 1 contains <image>"),
        (build_record("<|vision_start|><|image_pad|><|vision_end|>what?", "a.jpg"), "turn 1 contains <|vision_start|>"),
        (build_record("q", answer=[{"type": "image", "image": "a.jpg"}]), "turn 2 (assistant) has an image"),
        (build_record("q", answer=" "), "empty"),
        (build_record(None), "message 1's content is null"),
        (build_record([{"type": "video", "video": "a.mp4"}]), "type 'video'"),
        (build_record([{"type": "text"}]), "a text in message 1's content is null"),
        (build_record([{"type": "image", "image": "a", "path": "b"}]), "both 'image' and 'path'"),
        (build_record([{"type": "image_url"}]), "no 'image_url'"),
        (build_record([{"type": "image_url", "image_url": {"url": "https://x/a.jpg"}}]), "URL"),
        (build_record([{"type": "image_url", "image_url": {"file_id": "x"}}]), "is null"),
        (build_record("<image>", images=3), "'images' is a number"),
        (build_record("<image>", "a.jpg", image="b.jpg"), "both 'image' and 'images'"),
        (build_record("q", system=["be brief"]), "'system' is a list"),
        ({"messages": [{"role": "user", "content": "q", "tool_calls": [1]}]}, "'tool_calls'"),
        (build_record([{"type": "image", "image": 3}]), "a number"),
        (build_record([{"type": "image", "url": "http://x/a.jpg"}]), "URL"),
        (build_record(["q"]), "item 1 is text"),
        (build_record("<image>", ""), "path is empty"),
        (build_record("<image>", images=[{"bytes": ""}]), "image 1 is an object"),
        (build_record("q", videos=["a.mp4"]), "'videos'"),
        (build_record("q", prompt="r"), "'prompt', which this format does not read"),
        (build_record("q", label=False), "marked as not to be learned (label)"),
        (build_record("q", label="false", kto_tag=True), "the marks 'label', 'kto_tag' of the row differ"),
        (build_record("q", loss=0.3), "'loss' of the row is 0.3"),
        (
            build_record([{"type": "image", "image": "a", "max_pixels": 9}]),
            "'max_pixels', which this format does not read",
        ),
        (build_record([{"type": "text", "text": "a", "value": "b"}]), "both 'text' and 'value'"),
        ({"messages": [{"role": "user", "content": "q", "loss": True}]}, "only answers are learned"),
        (mark_answers({"loss": False}), "marks every answer as not to be learned"),
        (mark_answers({"weight": 0.5}), "'weight' of message 2 is 0.5"),
        (
            mark_answers({"reasoning_content": "hm"}),
            "message 2 has 'reasoning_content', which this format does not read",
        ),
        (mark_answers({"train_detail": [{"begin_offset": 0}]}), "'train_detail'"),
        ({"messages": {"role": "user"}}, "messages is an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool', not one of system, user, assistant"),
        ({"messages": [{"content": "x"}]}, "role None"),
    ],
)
def test_broken_records_are_refused(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        messages.read_record(raw, LOCATION)
    assert message in caught.value.message
    assert caught.value.hint


def test_a_system_key_becomes_a_system_turn() -> None:
    assert messages.read_record(build_record("q", system="s"), LOCATION).turns[0] == Turn("system", ("s",))
    with pytest.raises(LorgnetteError, match="turn 2 is a system turn"):
        messages.read_record({"messages": [{"role": "system", "content": "t"}], "system": "s"}, LOCATION)


def test_the_record_is_written_as_ms_swift_and_llama_factory_read_it() -> None:
    turns = (
        Turn("system", ("s",)),
        Turn("user", ("see ", A, B)),
        Turn("assistant", ("yes",)),
        Turn("user", ("q",)),
        Turn("assistant", ("a",)),
    )
    assert messages.to_record(Example("é", turns, LOCATION.source, 1)) == {
        "id": "é",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "see <image><image>"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ],
        "images": ["/data/a.jpg", "/x/b.jpg"],
    }
    assert "images" not in messages.to_record(Example("1", turns[3:], LOCATION.source, 1))
