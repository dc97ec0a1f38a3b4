from pathlib import Path

import pytest

from lorgnette.data.checks import row_remarks
from lorgnette.data.checks.row_remarks import RemarkCounter, list_remarks
from lorgnette.types import Example, Turn


def build_row(
    row: int, *, answer: str = "a", keys: tuple[str, ...] = (), source: str = "a.json", trimmed: bool = False
) -> Example:
    turns = (Turn("user", ("\nq ",)), Turn("assistant", (answer,)))
    return Example("x", turns, Path(source), row, unread_keys=keys, is_trimmed=trimmed)


def count(*rows: Example) -> list[str]:
    counter = RemarkCounter()
    for row in rows:
        counter.add(row, list_remarks(row))
    return [f"{f.kind}: {f.problem.source}, row {f.problem.row}: {f.problem.message}" for f in counter.build_findings()]


def test_each_key_is_named_once_for_a_source() -> None:
    rows = [build_row(1), build_row(2, keys=("license",)), build_row(3, keys=("license", "url"))]
    assert count(*rows, build_row(1, keys=("license",), source="b.json")) == [
        "unread-key: a.json, row 2: key 'license' is not read (2 rows)",
        "unread-key: a.json, row 3: key 'url' is not read (1 row)",
        "unread-key: b.json, row 1: key 'license' is not read (1 row)",
    ]


def test_the_examples_of_one_row_count_once() -> None:
    row = build_row(1, keys=("url",))
    assert count(row, row, build_row(2, keys=("url",))) == ["unread-key: a.json, row 1: key 'url' is not read (2 rows)"]


def test_blanks_around_answers_are_counted() -> None:
    rows = [build_row(number, answer=text) for number, text in enumerate(["a", " a", "a\n", "a\rb", "a b", "a\nb"])]
    [line] = count(*rows)
    assert line.startswith("blanks: a.json, row 1: ")
    assert line.endswith("(3 rows)")
    unlearned = Turn("assistant", (" a",), has_loss=False)
    assert count(Example("x", (Turn("user", ("q",)), unlearned), Path("a"), 1)) == []


def test_trimmed_rows_are_counted() -> None:
    assert count(build_row(4, trimmed=True)) == ["trimmed: a.json, row 4: blanks around a text are removed (1 row)"]


def test_a_new_key_in_each_row_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_remarks, "_MAX_KEYS", 3)
    lines = count(*(build_row(row, keys=(f"k{row}",)) for row in range(9)))
    assert len(lines) == 4
    assert lines[-1] == "unread-key: a.json, row 3: another key is not read (6 rows)"
