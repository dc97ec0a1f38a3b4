from pathlib import Path

import pytest

from lorgnette.data.checks.name_matches import NameMatches, may_be_same, take_rows
from lorgnette.types import Example, Image, Problem, Turn


def build_row(row: int, *images: Image) -> Example:
    return Example("x", (Turn("user", (*images, "q")), Turn("assistant", ("a",))), Path("a.json"), row)


def find(*rows: Example) -> list[int]:
    matches = NameMatches()
    for row in rows:
        matches.add(row)
    return [row.row for row in matches.find_collisions(rows)]


FILE = Path("/flat/0.png")


def test_both_rows_of_a_collision_are_found() -> None:
    a, b, other = Image(FILE, "A/0.png"), Image(FILE, "B/0.png"), Image(Path("/flat/1.png"), "A/1.png")
    assert find(build_row(1, a), build_row(2, other), build_row(3, b), build_row(4, a)) == [1, 3, 4]
    assert find(build_row(1, a, b)) == [1]
    matches, row = NameMatches(), build_row(1, a, b)
    matches.add(row)
    [problem] = matches.find_collisions([row]).values()
    assert problem.where == "'A/0.png', 'B/0.png': /flat/0.png"
    assert problem.hint


def test_a_collision_with_a_later_row_shows_in_the_first_rows() -> None:
    rows = [build_row(1, Image(FILE, "A/0.png")), build_row(2, Image(FILE, "B/0.png"))]
    assert [type(row) for row in take_rows(iter(rows), 1)] == [Problem]
    assert take_rows(iter(rows[:1]), 1) == rows[:1]
    assert take_rows(iter(rows[:1]), 5) == rows[:1]


def test_one_image_may_be_written_in_many_ways() -> None:
    ways = ("A/0.png", "./A/0.png", "/data/A/0.png", "D:\\data\\A\\0.png", "0.png")
    assert find(*(build_row(row, Image(FILE, way)) for row, way in enumerate(ways[:3]))) == []
    assert find(build_row(1, Image(FILE, ways[4])), build_row(2, Image(FILE, ways[3]))) == []
    assert find(
        build_row(1, Image(FILE, "0.png")), build_row(2, Image(FILE, "A/0.png")), build_row(3, Image(FILE, "B/0.png"))
    ) == [1, 2, 3]


def test_an_image_at_its_own_path_is_no_collision() -> None:
    assert find(build_row(1, Image(FILE)), build_row(2, Image(FILE, "A/0.png"))) == []


def test_equal_members_of_a_zip_are_no_collision() -> None:
    """Both are extracted to one file, named by its content."""
    extracted = Path("/zip.images/0123.png")
    assert find(build_row(1, Image(extracted, "A/0.png")), build_row(2, Image(extracted, "B/1.png"))) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("0.png", "A/0.png", True),
        ("A/0.png", "B/0.png", False),
        ("B/A/0.png", "A/0.png", True),
        ("A/0.png", "AA/0.png", False),
    ],
)
def test_paths_of_one_image(first: str, second: str, expected: bool) -> None:
    assert may_be_same(first, second) == may_be_same(second, first) == expected
