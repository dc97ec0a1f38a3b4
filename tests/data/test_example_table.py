"""Examples in flat buffers equal those that were added, in every field."""

import pickle
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data import example_table
from lorgnette.data.example_table import ExampleTable, group_by_question, iter_references
from lorgnette.types import Box, BoxSource, ControlToken, Example, Image, Turn

TEXT = st.one_of(st.text(max_size=6), st.sampled_from(["", "What?", "identity_", "a\ud800"]))
IMAGE = st.builds(
    Image,
    st.sampled_from([Path("a/1.jpg"), Path("a/2.jpg"), Path("/é.png")]),
    st.sampled_from(["", "x/1.jpg"]),
    st.sampled_from([None, (2, 3)]),
)
BOX = st.builds(
    Box,
    st.tuples(*[st.floats(allow_nan=False)] * 4),
    TEXT,
    st.integers(0, 2),
    st.sampled_from(["pixels", "sides"]),
    st.sampled_from([(), ("[1, 2]", ControlToken("<|box_end|>"))]),
    st.sampled_from([BoxSource(), BoxSource("b", (1.0, 2.0), "x, y", "pixels")]),
)
PARTS = st.lists(st.one_of(TEXT, IMAGE, BOX), max_size=3).map(tuple)
TURNS = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), PARTS, st.booleans()), max_size=4)
IDS = st.one_of(TEXT, st.integers(0, 10**20).map("identity_{}".format), st.sampled_from(["identity_007", "identity_²"]))
EXAMPLES = st.builds(
    Example,
    IDS,
    TURNS.map(tuple),
    st.sampled_from([Path("a.csv"), Path("b.json")]),
    st.integers(0, 10**9),
    st.sampled_from([(), ("key", "other")]),
    st.booleans(),
    st.sampled_from([0, 0, 7]),
)


def describe(example: Example) -> str:
    """All fields, also those that equality leaves out."""
    fields = example.unread_keys, example.is_trimmed, example.sheet_row
    images = [(image.written, image.size) for image in example.images]
    boxes = [(box.written, box.source) for turn in example.turns for box in turn.parts if isinstance(box, Box)]
    return repr((example, fields, images, boxes))


def test_numpys_strings_and_numbers_are_plain_ones_afterwards() -> None:
    answer = Turn("assistant", (np.str_("a dog"),))
    example = Example(np.str_("r7"), (Turn("user", (np.str_("What?"),)), answer), Path("a.csv"), np.int64(3))  # type: ignore[arg-type]
    [read] = ExampleTable([example])
    assert read == example
    assert [type(value) for value in (read.id, read.row, *read.turns[1].parts)] == [str, int, str]


def assert_equal(table: ExampleTable, examples: list[Example]) -> None:
    assert list(map(describe, table)) == list(map(describe, examples))
    assert list(iter_references(table)) == [example.reference for example in examples]
    assert list(table.iter_has_boxes()) == [bool(example.reference_boxes) for example in examples]


@given(st.lists(EXAMPLES, max_size=8), st.lists(EXAMPLES, max_size=8), st.integers(0, 3), st.randoms())
def test_examples_come_back_as_they_were(
    first: list[Example], second: list[Example], max_shared: int, rng: random.Random
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_table, "MAX_SHARED", max_shared)
        table, other = ExampleTable(first), ExampleTable(second)
        assert_equal(table, first)
        table.extend(pickle.loads(pickle.dumps(other)))
        examples = [*first, *second]
        assert_equal(table, examples)
        assert table == examples
        indices = [rng.randrange(len(examples)) for _ in range(len(examples))]
        chosen, expected = table.select(indices), [examples[i] for i in indices]
        assert_equal(chosen, expected)
        assert_equal(chosen[1:4], expected[1:4])
        assert list(map(describe, chosen.build_all())) == list(map(describe, expected))
        if expected:
            assert describe(chosen[-1]) == describe(expected[-1])
        numbers, offsets = chosen.list_image_numbers()
        images = [[table.images[n].path for n in numbers[offsets[i] : offsets[i + 1]]] for i in range(len(chosen))]
        assert images == [[image.path for image in example.images] for example in expected]


def test_a_changed_field_is_seen() -> None:
    """What the test above compares: an example that differs in one field alone is another."""
    turns = (Turn("user", (Image(Path("a.jpg")), "What?")), Turn("assistant", ("a cat",)))
    example = Example("x", turns, Path("a.csv"), 3)
    for other in (
        replace(example, sheet_row=5),
        replace(example, is_trimmed=True),
        replace(example, turns=(Turn("user", (Image(Path("a.jpg"), size=(2, 3)), "What?")), turns[1])),
        replace(example, turns=(turns[0], Turn("assistant", ("a cat",), has_loss=False))),
    ):
        assert list(map(describe, ExampleTable([other]))) != [describe(example)]


def test_questions_are_counted_without_their_rows() -> None:
    def build(question: str, answer: str, number: int) -> Example:
        turns = (Turn("user", (Image(Path(f"{number}.jpg")), question)), Turn("assistant", (answer,)))
        return Example(f"identity_{number}", turns, Path("a.csv"), number)

    rows = [build("What?", "a", 1), build("Who?", "b", 2), build("What?", "c", 3)]
    assert [(row.row, count) for row, count in group_by_question(ExampleTable(rows))] == [(1, 2), (2, 1)]
    assert [(row.row, count) for row, count in group_by_question(ExampleTable(rows).select([1, 2, 0]))] == [
        (2, 1),
        (3, 2),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_table, "MAX_SHARED", 0)
        assert [(row.row, n) for row, n in group_by_question(ExampleTable(rows))] == [(1, 1), (2, 1), (3, 1)]


def test_a_row_takes_little_memory() -> None:
    caption = "A small pink balloon to the left of a small red heart."

    def build(number: int) -> Example:
        turns = (Turn("user", (Image(Path(f"images/{number // 5:012}.jpg")), "What?")), Turn("assistant", (caption,)))
        return Example(f"identity_{number}", turns, Path("a.csv"), number + 1)

    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    table = ExampleTable(map(build, range(5000)))
    num_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(table) == 5000
    assert num_bytes / len(table) < 110 + len(caption) + 1000 / 5
