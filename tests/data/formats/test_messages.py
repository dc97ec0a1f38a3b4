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


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (build_record("<image>\nwhat?", "a.jpg"), (A, "\nwhat?")),
        (build_record("see <image> and <image>.", "a.jpg", "/x/b.jpg"), ("see ", A, " and ", B, ".")),
        (build_record("<image><image>", "a.jpg", "/x/b.jpg"), (A, B)),
        (build_record("what?", "a.jpg", "/x/b.jpg"), (A, B, "what?")),
        (build_record("<|im_end|><|vision_start|>"), ("<|im_end|><|vision_start|>",)),
        (build_record([{"type": "text", "text": "what? "}, {"type": "image", "image": "a.jpg"}]), ("what? ", A)),
        (build_record([{"type": "image", "path": "a.jpg"}, {"type": "image", "url": "file:///x/b.jpg"}]), (A, B)),
        (build_record([{"type": "image"}, {"type": "text", "text": "<image>"}], "a.jpg"), (A, "<image>")),
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
