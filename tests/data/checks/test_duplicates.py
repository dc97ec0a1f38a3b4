from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lorgnette.data.checks.duplicates import find_duplicates
from lorgnette.data.splits import map_identical_files
from lorgnette.types import Example, Image, Turn

RED, DARK_RED, BLUE = (bytes(color) * 256 for color in ((200, 30, 30), (199, 30, 30), (30, 30, 200)))


def row(number: int, *paths: Path, text: str = "a", source: str = "a.csv") -> Example:
    turns = (Turn("user", (*map(Image, paths), "q")), Turn("assistant", (text,)))
    return Example(f"id {number}", turns, Path(source), number)


def list_findings(
    train: Sequence[Example], test: Sequence[Example] = (), signatures: dict[Path, bytes] | None = None
) -> list[tuple[str, int, str]]:
    same = map_identical_files(image.path for row in (*train, *test) for image in row.images)
    findings = find_duplicates(train, test, same, signatures or {})
    return [(finding.kind, finding.problem.row, finding.problem.message) for finding in findings]


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[str, str], Path]:
    def make(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return make


def test_a_duplicate_row_names_the_earlier_one(make_file: Callable[..., Path]) -> None:
    path = make_file("a", "1")
    assert list_findings([row(1, path), row(2, path, text="b"), row(3, path)]) == [
        ("repeated-row", 3, "duplicate of row 1 (same images, same text)")
    ]
    assert (
        list_findings([row(1)], [row(2, source="b.csv")])[0][2] == "duplicate of a.csv, row 1 (same images, same text)"
    )


def test_an_image_in_both_parts_is_a_leak(make_file: Callable[..., Path]) -> None:
    path, other = make_file("a", "1"), make_file("b", "2")
    train = [row(1, path), row(2, other)]
    assert list_findings(train, [row(7, path, text="x"), row(8, make_file("c", "3"))]) == [
        ("leak", 7, "a is held out, but also in the training part: row 1")
    ]


def test_a_copy_in_the_other_part_is_one_leak(make_file: Callable[..., Path]) -> None:
    findings = list_findings([row(1, make_file("a", "1"))], [row(2, make_file("copy", "1"), text="x")])
    assert findings == [("leak", 2, "copy is held out, but also in the training part: row 1")]


def test_copies_within_a_part_are_found(make_file: Callable[..., Path]) -> None:
    a, copy, third = make_file("a", "1"), make_file("copy", "1"), make_file("third", "1")
    findings = list_findings([row(1, a), row(2, copy, text="x"), row(3, copy, third, text="y")])
    assert findings == [
        ("copy", 2, "copy is byte for byte a of row 1"),
        ("copy", 3, "third is byte for byte a of row 1"),
    ]
    assert list_findings([], [row(1, a, copy)]) == [("copy", 1, "copy is byte for byte a of the same row")]


def test_near_duplicates_within_a_part_and_across_parts_are_found(make_file: Callable[..., Path]) -> None:
    a, similar, other = make_file("a", "1"), make_file("similar", "22"), make_file("other", "333")
    signatures = {a: RED, similar: DARK_RED, other: BLUE}
    rows = [row(1, a), row(2, similar), row(3, other)]
    assert list_findings(rows, (), signatures) == [("look-alike", 2, "similar looks like a of row 1")]
    assert list_findings(rows[1:], rows[:1], signatures) == [
        ("look-alike-leak", 1, "a is held out and looks like similar of row 2")
    ]
    assert list_findings(rows[2:], rows[:2], signatures) == [("look-alike", 2, "similar looks like a of row 1")]
    assert list_findings(rows, (), {a: RED, other: BLUE}) == []  # without a signature


def test_a_leak_is_not_reported_again_as_a_near_duplicate(make_file: Callable[..., Path]) -> None:
    a, similar = make_file("a", "1"), make_file("similar", "22")
    findings = list_findings([row(1, a), row(2, similar)], [row(3, similar, text="x")], {a: RED, similar: DARK_RED})
    assert [(kind, where) for kind, where, _ in findings] == [("leak", 3), ("look-alike", 2)]


def test_distinct_rows_have_no_findings(make_file: Callable[..., Path]) -> None:
    assert (
        list_findings([row(1, make_file("a", "1")), row(2, make_file("b", "2")), row(3)], [row(4, make_file("c", "3"))])
        == []
    )
