import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette.data import conversations
from lorgnette.data.conversations import END, START
from lorgnette.data.fields import Place
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Turn

PLACE = Place(Path("/data/a.json"), 1, 1)
A, B = Picture(Path("/data/a.jpg")), Picture(Path("/data/b.jpg"))
MARKED_A, MARKED_B = f"{START}a.jpg{END}", f"{START}/data/b.jpg{END}"


def record(user: Any, answer: Any = "yes", **more: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "conversations": [{"from": "user", "value": user}, {"from": "assistant", "value": answer}],
        **more,
    }


def parts(user: str) -> tuple[str | Picture, ...]:
    return conversations.example(record(user), PLACE).turns[0].parts


def test_the_tutorials_record() -> None:
    assert conversations.example(record(f"COCO Yes: {MARKED_A}", "a cat"), PLACE) == Example(
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
def test_order(user: str, expected: tuple[str | Picture, ...]) -> None:
    assert parts(user) == expected


def test_markers_are_text_outside_the_users_turns() -> None:
    said = [("system", END), ("human", "q"), ("gpt", f"{START} {START}")]
    example = conversations.example({"conversations": [{"from": who, "value": what} for who, what in said]}, PLACE)
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
        conversations.example(broken, PLACE)
    assert what in caught.value.what
    assert caught.value.remedy


def test_relative_paths_start_at_the_file_or_else_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "a.jpg").touch()
    monkeypatch.chdir(here)
    example = conversations.example(record(MARKED_A), Place(there / "a.json", 1, 1))
    assert example.pictures[0].path == here / "a.jpg"
    (there / "a.jpg").touch()
    example = conversations.example(record(MARKED_A), Place(there / "a.json", 1, 1))
    assert example.pictures[0].path == there / "a.jpg"


def said(*parts: str | Picture, answer: str = "yes") -> Example:
    return Example("one", (Turn("user", parts), Turn("assistant", (answer,))), PLACE.source, 1)


def test_written_exactly_as_the_tutorial_does() -> None:
    assert conversations.written(said(A, "COCO Yes:")) == (
        record(f"COCO Yes: {START}/data/a.jpg{END}"),
        False,
    )


def test_blanks_that_the_form_does_not_keep_are_told() -> None:
    made, tidied = conversations.written(said(A, "\nwhat? "))
    assert tidied
    assert conversations.example(made, PLACE).turns[0].parts == (A, "what?")


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (said(A, f"what is {START}?"), "text holds <|vision_start|>"),
        (said(f"what is {END}?"), "text holds"),
        (said("first text", A), "text stands before"),
        (said("text", A, "more"), "text stands before"),
        (said(Picture(Path(f"/data/{START}.jpg"))), "holds"),
        (said(Picture(Path("/data/blank at end.jpg "))), "cannot hold this row"),
        (said(Picture(Path("/data/not\udcffutf8.jpg"))), "surrogate"),
        (Example("one", (Turn("user", (A,)),), PLACE.source, 1), "no assistant turn"),
    ],
)
def test_what_the_form_cannot_say_is_refused(example: Example, what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        conversations.written(example)
    assert what in caught.value.what
    assert caught.value.remedy


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["<|im_end|>\n<|im_start|>user", '"quoted"\\n', "<image>", START, END, "<|vision_pad|>", "\u2028\0\x1f", " "]
)
PICTURES = st.sampled_from([A, B, Picture(Path('/data/图 像,"x".jpg'))])
PARTS = st.lists(TEXT | PICTURES, min_size=1, max_size=5).map(tuple)
PAIRS = st.lists(st.tuples(PARTS, TEXT), min_size=1, max_size=3)


@given(PAIRS, st.none() | TEXT)
@settings(deadline=None, max_examples=300)
def test_written_and_read_back_is_the_same_or_refused(
    pairs: list[tuple[tuple[str | Picture, ...], str]], system: str | None
) -> None:
    turns = [] if system is None else [Turn("system", (system,))]
    for question, answer in pairs:
        turns += [Turn("user", question), Turn("assistant", (answer,))]
    try:
        made, tidied = conversations.written(Example("é", tuple(turns), PLACE.source, 1))
    except LorgnetteError:
        return
    back = conversations.example(json.loads(json.dumps(made)), PLACE)
    assert back.id == "é"
    for one, other in zip(turns, back.turns, strict=True):
        assert one.role == other.role
        pictures = [part for part in one.parts if isinstance(part, Picture)]
        assert pictures == [part for part in other.parts if isinstance(part, Picture)]
        if one.role == "user" and len(pictures) == 1 and tidied:
            assert one.text.strip() == other.text
        else:
            assert one.text == other.text
