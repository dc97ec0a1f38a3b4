from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data.checks.scan import scan
from lorgnette.data.dataset import read
from lorgnette.data.image_resolver import CannotExtractError
from lorgnette.data.row_location import ReadOptions, RowCounter, RowLocation, sample_rows
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Finding, Problem

LOCATION = RowLocation(Path("/data/a.jsonl"), 7, 3)


def test_an_error_becomes_the_problem_of_its_row() -> None:
    assert LOCATION.id == "identity_3"
    problem = LOCATION.to_problem(LorgnetteError("wrong", where="b.jpg", hint="right it"))
    assert (problem.row, problem.message, problem.hint) == (7, "wrong (b.jpg)", "right it")
    assert LOCATION.to_problem(LorgnetteError("wrong")).hint


def test_a_row_is_its_examples_or_its_problem() -> None:
    good = Example("1", (), LOCATION.source, 7)
    assert list(LOCATION.try_read(lambda: [good, good])) == [good, good]

    def read_broken() -> list[Example]:
        raise LorgnetteError("wrong", hint="right it")

    assert list(LOCATION.try_read(read_broken)) == [Problem(LOCATION.source, 7, "wrong", "right it")]

    def fill_disk() -> list[Example]:
        raise CannotExtractError("no space left")

    with pytest.raises(CannotExtractError):  # the disk, not the row
        list(LOCATION.try_read(fill_disk))


def test_rows_are_counted_from_one() -> None:
    counter = RowCounter(Path("/data/a.csv"), ReadOptions(prompt="q"))
    first, second = counter.next(5), counter.next()
    assert (first.row, first.number, second.row, second.number, second.prompt) == (5, 1, 2, 2, "q")
    assert first.resolve_image("a.jpg", "x").path == Path("/data/a.jpg")


def test_a_name_needs_named_parts() -> None:
    assert ReadOptions().require_no_name(Path("a.csv")) == ReadOptions()
    with pytest.raises(UsageError, match="'val'"):
        ReadOptions(name="val").require_no_name(Path("a.csv"))


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 9))
def test_a_sample_keeps_the_order_and_is_the_same_for_a_seed(total: int, count: int, seed: int) -> None:
    sample = sample_rows(iter(range(total)), count, seed)
    assert len(sample) == min(total, count)
    assert sample == sorted(set(sample))
    assert sample == sample_rows(range(total), count, seed)


def test_every_row_is_sampled_equally_often() -> None:
    counts = Counter(row for seed in range(3000) for row in sample_rows(range(20), 5, seed))
    assert set(counts) == set(range(20))
    assert all(abs(count - 750) < 120 for count in counts.values())  # five standard deviations


def test_sampling_holds_only_the_sample() -> None:
    held = 0
    most = 0

    class Row:
        def __init__(self) -> None:
            nonlocal held, most
            held += 1
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    assert len(sample_rows((Row() for _ in range(2000)), 10, 0)) == 10
    assert most <= 13


def test_a_row_of_a_csv_has_the_number_of_a_spreadsheet_too(make_image: Callable[..., Path]) -> None:
    """After a cell with several lines the numbers of lines and rows differ."""
    path = make_image("a.png").with_name("a.csv")
    rows = ['a.png,"two\nlines"', "", "a.png,one", "none.png,x", 'a.png,"b"c', "a.png,"]
    path.write_text("\n".join(["image_path,caption", *rows]) + "\n")
    scanned = scan(read(path))
    places = [row.place for row in [*scanned.examples, *scanned.problems]]
    assert places[0] == "row 2"
    assert places[1:] == [f"row {line} (row {line - 1} in a spreadsheet)" for line in (5, 6, 7, 8)]
    assert f"{path}, row 6 (row 5 in a spreadsheet): image is missing" in str(scanned.problems[0])
    finding = Finding.for_example(scanned.examples[1], "tiny", "small", "do")
    assert finding.problem.place == places[1]
