from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lorgnette.data.checks.duplicates import find_duplicates
from lorgnette.data.splits import map_identical_files
from lorgnette.types import Example, Image, Turn

RED, DARK_RED, BLUE = (bytes(colour) * 256 for colour in ((200, 30, 30), (199, 30, 30), (30, 30, 200)))


def row(number: int, *paths: Path, text: str = "a", source: str = "a.csv") -> Example:
    turns = (Turn("user", (*map(Image, paths), "q")), Turn("assistant", (text,)))
    return Example(f"id {number}", turns, Path(source), number)


def told(
    train: Sequence[Example], test: Sequence[Example] = (), sketches: dict[Path, bytes] | None = None
) -> list[tuple[str, int, str]]:
    same = map_identical_files(picture.path for row in (*train, *test) for picture in row.images)
    found = find_duplicates(train, test, same, sketches or {})
    return [(each.kind, each.problem.row, each.problem.message) for each in found]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], Path]:
    def make(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return make


def test_a_row_said_twice(file: Callable[..., Path]) -> None:
    path = file("a", "1")
    assert told([row(1, path), row(2, path, text="b"), row(3, path)]) == [
        ("repeated-row", 3, "shows and says the same as row 1")
    ]
    assert told([row(1)], [row(2, source="b.csv")])[0][2] == "shows and says the same as a.csv, row 1"


def test_a_picture_in_both_parts(file: Callable[..., Path]) -> None:
    path, other = file("a", "1"), file("b", "2")
    train = [row(1, path), row(2, other)]
    assert told(train, [row(7, path, text="x"), row(8, file("c", "3"))]) == [
        ("leak", 7, "a is held out, and trained on in row 1")
    ]


def test_the_same_bytes_in_both_parts_are_one_finding(file: Callable[..., Path]) -> None:
    found = told([row(1, file("a", "1"))], [row(2, file("copy", "1"), text="x")])
    assert found == [("leak", 2, "copy is held out, and trained on in row 1")]


def test_copies_within_a_part(file: Callable[..., Path]) -> None:
    a, copy, third = file("a", "1"), file("copy", "1"), file("third", "1")
    found = told([row(1, a), row(2, copy, text="x"), row(3, copy, third, text="y")])
    assert found == [
        ("copy", 2, "copy is, byte for byte, a of row 1"),
        ("copy", 3, "third is, byte for byte, a of row 1"),
    ]
    assert told([], [row(1, a, copy)]) == [("copy", 1, "copy is, byte for byte, a of the same row")]


def test_look_alikes_within_a_part_and_across(file: Callable[..., Path]) -> None:
    a, alike, other = file("a", "1"), file("alike", "22"), file("other", "333")
    sketches = {a: RED, alike: DARK_RED, other: BLUE}
    rows = [row(1, a), row(2, alike), row(3, other)]
    assert told(rows, (), sketches) == [("look-alike", 2, "alike looks like a of row 1")]
    assert told(rows[1:], rows[:1], sketches) == [("look-alike-leak", 1, "a is held out and looks like alike of row 2")]
    assert told(rows[2:], rows[:2], sketches) == [("look-alike", 2, "alike looks like a of row 1")]
    assert told(rows, (), {a: RED, other: BLUE}) == []  # not compared, not found


def test_what_is_trained_on_is_no_look_alike_leak_though_also_held_out(file: Callable[..., Path]) -> None:
    a, alike = file("a", "1"), file("alike", "22")
    found = told([row(1, a), row(2, alike)], [row(3, alike, text="x")], {a: RED, alike: DARK_RED})
    assert [(kind, where) for kind, where, _ in found] == [("leak", 3), ("look-alike", 2)]


def test_distinct_rows_are_left_in_peace(file: Callable[..., Path]) -> None:
    assert told([row(1, file("a", "1")), row(2, file("b", "2")), row(3)], [row(4, file("c", "3"))]) == []
