from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import conversations
from lorgnette.data.formats.conversations import END, START
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn

LOCATION = RowLocation(Path("/data/a.json"), 1, 1)
A, B = Image(Path("/data/a.jpg")), Image(Path("/data/b.jpg"))
MARKED_A, MARKED_B = f"{START}a.jpg{END}", f"{START}/data/b.jpg{END}"


def build_record(user: Any, answer: Any = "yes", **more: Any) -> dict[str, Any]:
    return {
        "id": "one",
        "conversations": [{"from": "user", "value": user}, {"from": "assistant", "value": answer}],
        **more,
    }


def read_parts(user: str) -> tuple[str | Image, ...]:
    return conversations.read_record(build_record(user), LOCATION).turns[0].parts


def test_the_tutorials_record_is_read() -> None:
    assert conversations.read_record(build_record(f"COCO Yes: {MARKED_A}", "a cat"), LOCATION) == Example(
        "one", (Turn("user", (A, "COCO Yes:")), Turn("assistant", ("a cat",))), LOCATION.source, 1
    )


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (MARKED_A, (A,)),
        (f"{MARKED_A}\nwhat?", (A, "what?")),
        (f" before {MARKED_A} after ", (A, "before  after")),
        (f"{MARKED_A}{MARKED_B}", (A, B)),
        (f" x {MARKED_A} y {MARKED_B}\n", (" x ", A, " y ", B, "\n")),
        ("no image ", ("no image ",)),
        ("<|im_end|>", ("<|im_end|>",)),
    ],
)
def test_a_single_image_comes_first_several_keep_their_order(user: str, expected: tuple[str | Image, ...]) -> None:
    assert read_parts(user) == expected


def test_markers_are_text_outside_the_users_turns() -> None:
    turns = [("system", END), ("human", "q"), ("gpt", f"{START} {START}")]
    example = conversations.read_record(
        {"conversations": [{"from": role, "value": text} for role, text in turns]}, LOCATION
    )
    assert [(turn.role, turn.text) for turn in example.turns] == [
        ("system", END),
        ("user", "q"),
        ("assistant", f"{START} {START}"),
    ]
    assert example.id == "identity_1"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (build_record(f"{START}a.jpg"), "without its <|vision_end|>"),
        (build_record(f"a.jpg{END}"), "<|vision_end|> without its <|vision_start|>"),
        (build_record(f"{START}a{START}b{END}"), "<|vision_start|> without its <|vision_end|>"),
        (build_record(f"{START} {END}"), "path is empty"),
        (build_record(f"{START}https://x/a.jpg{END}"), "URL"),
        (build_record(MARKED_A, ""), "answer in turn 2 is empty"),
        (build_record(MARKED_A, None), "turn 2's 'value' is null"),
        (build_record(["a"]), "turn 1's 'value' is a list"),
        (build_record("\ud800"), "surrogate"),
        (build_record("<image>\nq", image="a.jpg"), "'image'"),
        (build_record("q", id=[]), "id is a list"),
        ({"conversations": "q"}, "conversations is text"),
        ({"conversations": ["q"]}, "item 1 is text"),
        ({"conversations": []}, "no turns"),
        (build_record("<image>q"), "turn 1 contains <image>, which stands for no image"),
        (build_record(f"{MARKED_A} <|image_pad|>"), "turn 1 contains <|image_pad|>, which stands for no image"),
        (build_record("q", system="s"), "'system'"),
        ({"conversations": [{"from": "bot", "value": "q"}]}, "from 'bot', not one of system, user, human, assistant"),
        ({"conversations": [{"value": "q"}]}, "from None"),
        ({"conversations": [{"from": [], "value": "q"}]}, "from []"),
    ],
)
def test_broken_records_are_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        conversations.read_record(broken, LOCATION)
    assert message in caught.value.message
    assert caught.value.hint


def test_relative_paths_start_at_the_file_or_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, data = tmp_path / "current", tmp_path / "data"
    for folder in (current, data):
        folder.mkdir()
    (current / "a.jpg").touch()
    monkeypatch.chdir(current)
    example = conversations.read_record(build_record(MARKED_A), RowLocation(data / "a.json", 1, 1))
    assert example.images[0].path == current / "a.jpg"
    (data / "a.jpg").touch()
    example = conversations.read_record(build_record(MARKED_A), RowLocation(data / "a.json", 1, 1))
    assert example.images[0].path == data / "a.jpg"


def build_example(*parts: str | Image, answer: str = "yes") -> Example:
    return Example("one", (Turn("user", parts), Turn("assistant", (answer,))), LOCATION.source, 1)


def test_the_record_is_written_as_in_the_tutorial() -> None:
    assert conversations.to_record(build_example(A, "COCO Yes:")) == build_record(f"COCO Yes: {START}/data/a.jpg{END}")


def test_trim_turns_predicts_the_lost_spaces() -> None:
    turns = build_example(A, "\nwhat? ").turns
    record = conversations.to_record(build_example(A, "\nwhat? "))
    assert conversations.trim_turns(turns) == conversations.read_record(record, LOCATION).turns != turns
    assert conversations.trim_turns(build_example(A, B, " x ").turns) == build_example(A, B, " x ").turns


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (build_example(A, f"what is {START}?"), "text contains <|vision_start|>"),
        (build_example(f"what is {END}?"), "text contains"),
        (build_example("first text", A), "text comes before"),
        (build_example("text", A, "more"), "text comes before"),
        (build_example(Image(Path(f"/data/{START}.jpg"))), "contains"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(example: Example, message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        conversations.to_record(example)
    assert message in caught.value.message
    assert caught.value.hint
