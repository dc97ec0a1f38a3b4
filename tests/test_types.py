"""What the spine promises to every room."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid, Prediction, Problem, Turn

CAT, DOG = Image(Path("cat.png")), Image(Path("dog.png"))
ASKED = Turn("user", (CAT, "what is ", DOG, "this?"))
SAID = Turn("assistant", ("a ", "cat"))
EXAMPLE = Example("one", (ASKED, SAID), Path("cats.csv"), 7)
EMPTY = np.empty(0, np.int32)


def test_a_turn_reads_as_its_texts() -> None:
    assert ASKED.text == "what is this?"
    assert Turn("user", (CAT,)).text == ""


def test_an_example_names_its_pictures_in_order_and_its_row() -> None:
    assert replace(EXAMPLE, turns=(ASKED, SAID, Turn("user", (CAT,)))).images == (CAT, DOG, CAT)
    assert EXAMPLE.where == "cats.csv, row 7"


@pytest.mark.parametrize(
    ("turns", "reference", "kept"),
    [
        ((ASKED, SAID), "a cat", 1),
        ((ASKED, SAID, ASKED), "a cat", 1),
        ((ASKED, SAID, ASKED, Turn("assistant", ("no",))), "no", 3),
        ((ASKED,), "", 1),
        ((), "", 0),
    ],
)
def test_the_prompt_ends_before_the_last_answer(turns: tuple[Turn, ...], reference: str, kept: int) -> None:
    example = replace(EXAMPLE, turns=turns)
    assert example.reference == reference
    assert example.without_answer == replace(EXAMPLE, turns=turns[:kept])


def test_a_problem_is_one_line_with_place_and_remedy() -> None:
    assert str(Problem(Path("a.csv"), 3, "no picture", "add one")) == "a.csv, row 3: no picture; add one"


def test_merge_squared_patches_make_a_token() -> None:
    assert ImageGrid(CAT, 1, 4, 6, 2).num_tokens == 6
    assert ImageGrid(CAT, 1, 4, 6, 1).num_tokens == 24


def test_labels_are_counted() -> None:
    labels = np.array([IGNORE_INDEX, 5, IGNORE_INDEX, 0], np.int32)
    assert Encoded(EXAMPLE, labels, labels, np.zeros((3, 4), np.int32), (), ()).num_labels == 2


def test_nothing_on_the_spine_can_be_changed() -> None:
    for thing, name in ((EXAMPLE, "id"), (CAT, "path"), (SAID, "role"), (Prediction(EXAMPLE, "a"), "text")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, "other")
