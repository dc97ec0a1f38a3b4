from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import conversations
from lorgnette.data.formats.conversations import END, START
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

PLACE = RowLocation(Path("/data/a.json"), 1, 1)
A, B = Image(Path("/data/a.jpg")), Image(Path("/data/b.jpg"))
MARKED_A, MARKED_B = f"{START}a.jpg{END}", f"{START}/data/b.jpg{END}"


def record(user: Any, answer: Any = "yes", **more: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "conversations": [{"from": "user", "value": user}, {"from": "assistant", "value": answer}],
        **more,
    }


def parts(user: str) -> tuple[str | Image, ...]:
    return conversations.read_record(record(user), PLACE).turns[0].parts


def test_the_tutorials_record() -> None:
    assert conversations.read_record(record(f"COCO Yes: {MARKED_A}", "a cat"), PLACE) == Example(
        "one", (Turn("user", (A, "COCO Yes:")), Turn("assistant", ("a cat",))), PLACE.source, 1
    )


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (MARKED_A, (A,)),
        (f"{MARKED_A}\nwhat?", (A, "what?")),
        (f" before {MARKED_A} after ", (A, "before  after")),
        (f"{MARKED_A}{MARKED_B}", (A, B)),
        (f" x {MARKED_A} y {MARKED_B}\n", (" x ", A, " y ", B, "\n")),
        ("no picture ", ("no picture ",)),
        ("<image> <|im_end|> <|image_pad|>", ("<image> <|im_end|> <|image_pad|>",)),
    ],
)
def test_order(user: str, expected: tuple[str | Image, ...]) -> None:
    assert parts(user) == expected


def test_markers_are_text_outside_the_users_turns() -> None:
    said = [("system", END), ("human", "q"), ("gpt", f"{START} {START}")]
    example = conversations.read_record({"conversations": [{"from": who, "value": what} for who, what in said]}, PLACE)
    assert [(turn.role, turn.text) for turn in example.turns] == [
        ("system", END),
        ("user", "q"),
        ("assistant", f"{START} {START}"),
    ]
    assert example.id == "identity_1"


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (record(f"{START}a.jpg"), "without its <|vision_end|>"),
        (record(f"a.jpg{END}"), "<|vision_end|> without its <|vision_start|>"),
        (record(f"{START}a{START}b{END}"), "<|vision_start|> without its <|vision_end|>"),
        (record(f"{START} {END}"), "path is empty"),
        (record(f"{START}https://x/a.jpg{END}"), "address"),
        (record(MARKED_A, ""), "answer in turn 2 is empty"),
        (record(MARKED_A, None), "turn 2's 'value' is null"),
        (record(["a"]), "turn 1's 'value' is a list"),
        (record("\ud800"), "surrogate"),
        (record("<image>\nq", image="a.jpg"), "'image'"),
        (record("q", id=[]), "id is a list"),
        ({"conversations": "q"}, "conversations is text"),
        ({"conversations": ["q"]}, "item 1 is text"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [{"from": "user", "value": "q"}]}, "no assistant turn"),
        ({"conversations": [{"from": "bot", "value": "q"}]}, "from 'bot', not one of system, user, human, assistant"),
        ({"conversations": [{"value": "q"}]}, "from None"),
        ({"conversations": [{"from": [], "value": "q"}]}, "from []"),
    ],
)
def test_broken_records(broken: dict[str, Any], what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        conversations.read_record(broken, PLACE)
    assert what in caught.value.message
    assert caught.value.hint


def test_relative_paths_start_at_the_file_or_else_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "a.jpg").touch()
    monkeypatch.chdir(here)
    example = conversations.read_record(record(MARKED_A), RowLocation(there / "a.json", 1, 1))
    assert example.images[0].path == here / "a.jpg"
    (there / "a.jpg").touch()
    example = conversations.read_record(record(MARKED_A), RowLocation(there / "a.json", 1, 1))
    assert example.images[0].path == there / "a.jpg"


def said(*parts: str | Image, answer: str = "yes") -> Example:
    return Example("one", (Turn("user", parts), Turn("assistant", (answer,))), PLACE.source, 1)


def test_written_exactly_as_the_tutorial_does() -> None:
    assert conversations.to_record(said(A, "COCO Yes:")) == record(f"COCO Yes: {START}/data/a.jpg{END}")


def test_blanks_that_the_form_does_not_keep_are_told() -> None:
    turns = said(A, "\nwhat? ").turns
    made = conversations.to_record(said(A, "\nwhat? "))
    assert conversations.trim_turns(turns) == conversations.read_record(made, PLACE).turns != turns
    assert conversations.trim_turns(said(A, B, " x ").turns) == said(A, B, " x ").turns


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (said(A, f"what is {START}?"), "text holds <|vision_start|>"),
        (said(f"what is {END}?"), "text holds"),
        (said("first text", A), "text stands before"),
        (said("text", A, "more"), "text stands before"),
        (said(Image(Path(f"/data/{START}.jpg"))), "holds"),
    ],
)
def test_what_the_form_cannot_say_is_refused(example: Example, what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        conversations.to_record(example)
    assert what in caught.value.message
    assert caught.value.hint
