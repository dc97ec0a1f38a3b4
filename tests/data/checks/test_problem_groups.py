from pathlib import Path

from lorgnette.data.checks.problem_groups import format_group, format_problems, format_rows, group_problems
from lorgnette.types import Problem


def build_missing(row: int, source: str = "a.csv") -> Problem:
    return Problem(Path(source), row, f"image is missing (/p/{row}.png)", "correct the path", f"/p/{row}.png")


OTHER = Problem(Path("a.csv"), 3, "the caption is empty", "write one")


def test_equal_faults_are_one_line() -> None:
    assert format_problems([*(build_missing(row) for row in range(2, 32)), OTHER]) == [
        "30 rows: image is missing; correct the path (a.csv, rows 2–31: /p/2.png, /p/3.png, /p/4.png, …)",
        "a.csv, row 3: the caption is empty; write one",
    ]
    [line] = format_problems((build_missing(row) for row in range(2, 92, 2)), max_places=None)
    assert "86, 88, 90: /p/2.png" in line
    assert line.endswith("/p/88.png, /p/90.png)"), "all of them, on a page"
    assert format_problems([OTHER, OTHER]) == [str(OTHER)], "one row, twice"
    assert format_problems([]) == []


def test_a_row_of_another_file_is_another_row() -> None:
    [line] = format_problems([build_missing(2), build_missing(2, "b.csv")])
    assert line == "2 rows: image is missing; correct the path (a.csv, row 2; b.csv, row 2: /p/2.png)"


def test_other_remedies_are_other_lines() -> None:
    windows = Problem(Path("a.csv"), 9, "image is missing (p\\a)", "write / instead", "p\\a")
    assert [len(group) for group in group_problems([build_missing(2), windows, build_missing(4)])] == [2, 1]
    assert format_group([windows]) == str(windows)


def test_the_rest_is_counted() -> None:
    problems = [Problem(Path("a.csv"), row, f"fault {'abcdefghij'[row // 2]}", "correct it") for row in range(20)]
    lines = format_problems(problems, 3)
    assert lines[:3] == format_problems(problems)[:3]
    assert lines[3:] == ["… and 14 more"]


def test_faults_that_differ_in_numbers_are_one_line() -> None:
    problems = [Problem(Path("a.csv"), row, f"{200 + row} tokens, more than 260", "shorten it") for row in (70, 80)]
    [line] = format_problems(problems)
    assert line == "2 rows such as this: 270 tokens, more than 260; shorten it (a.csv, rows 70, 80)"


def test_rows_are_written_as_ranges() -> None:
    rows = [build_missing(row) for row in (2, 3, 4, 7, 9, 10)]
    assert format_rows(rows) == "a.csv, rows 2–4, 7, 9–10"
    assert format_rows([*rows, build_missing(1, "b.csv")]) == "a.csv, rows 2–4, 7, 9–10; b.csv, row 1"
    assert format_rows(rows[:1]) == "a.csv, row 2"
    assert format_rows([build_missing(row) for row in range(0, 99, 2)]).endswith("20, 22, …")
