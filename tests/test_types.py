"""The data types: images, rows, counts, and that nothing can be changed."""

from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid, Prediction, Problem, Turn

CAT, DOG = Image(Path("cat.png")), Image(Path("dog.png"))
QUESTION = Turn("user", (CAT, "what is ", DOG, "this?"))
ANSWER = Turn("assistant", ("a ", "cat"))
EXAMPLE = Example("one", (QUESTION, ANSWER), Path("cats.csv"), 7)
EMPTY = np.empty(0, np.int32)


def test_the_text_of_a_turn_leaves_out_images() -> None:
    assert QUESTION.text == "what is this?"
    assert Turn("user", (CAT,)).text == ""


def test_an_example_lists_its_images_in_order_and_names_its_row() -> None:
    assert replace(EXAMPLE, turns=(QUESTION, ANSWER, Turn("user", (CAT,)))).images == (CAT, DOG, CAT)
    assert EXAMPLE.where == "cats.csv, row 7"


@pytest.mark.parametrize(
    ("turns", "reference", "num_turns"),
    [
        ((QUESTION, ANSWER), "a cat", 1),
        ((QUESTION, ANSWER, QUESTION), "", 3),
        ((QUESTION, ANSWER, QUESTION, replace(ANSWER, has_loss=False)), "a cat", 1),
        ((QUESTION, ANSWER, QUESTION, Turn("assistant", ("no",))), "no", 3),
        ((QUESTION,), "", 1),
        ((), "", 0),
    ],
)
def test_without_answer_ends_before_the_last_answer_with_loss(
    turns: tuple[Turn, ...], reference: str, num_turns: int
) -> None:
    example = replace(EXAMPLE, turns=turns)
    assert example.reference == reference
    assert example.without_answer() == replace(EXAMPLE, turns=turns[:num_turns])


def test_a_problem_is_one_line_with_place_and_hint() -> None:
    assert str(Problem(Path("a.csv"), 3, "no image", "add one")) == "a.csv, row 3: no image; add one"


def test_merge_squared_patches_make_a_token() -> None:
    assert ImageGrid(CAT, 1, 4, 6, 2).num_tokens == 6
    assert ImageGrid(CAT, 1, 4, 6, 1).num_tokens == 24


def test_labels_are_counted() -> None:
    labels = np.array([IGNORE_INDEX, 5, IGNORE_INDEX, 0], np.int32)
    assert Encoded(EXAMPLE, labels, labels, np.zeros((3, 4), np.int32), (), ()).num_labels == 2


def test_data_types_are_frozen() -> None:
    for value, name in ((EXAMPLE, "id"), (CAT, "path"), (ANSWER, "role"), (Prediction(EXAMPLE, "a"), "text")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, "other")
