import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data import row_location
from lorgnette.data.formats import json_records
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem


def read(record: Mapping[str, Any], location: row_location.RowLocation) -> list[Example]:
    if "bad" in record:
        raise LorgnetteError("it is bad", hint="correct it")
    return [Example(f"{location.number}.{i}", (), location.source, location.row) for i in range(record["n"])]


def read_rows(path: Path) -> list[row_location.Row]:
    return list(json_records.read_records(path, row_location.RowCounter(path, row_location.ReadOptions()), read))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_record_is_its_examples_or_a_problem(tmp_path: Path, suffix: str) -> None:
    items = [{"n": 1}, {"bad": 1}, {"n": 2}, [], {"n": 0}]
    path = tmp_path / f"a{suffix}"
    path.write_text(json.dumps(items) if suffix == ".json" else "\n\n".join(map(json.dumps, items)))
    step = 2 if suffix == ".jsonl" else 1
    assert read_rows(path) == [
        Example("1.0", (), path, 1),
        Problem(path, 1 + step, "it is bad", "correct it"),
        Example("3.0", (), path, 1 + 2 * step),
        Example("3.1", (), path, 1 + 2 * step),
        Problem(path, 1 + 3 * step, "the row is a list, not an object", read_rows(path)[4].hint),  # type: ignore[union-attr]
    ]


def test_a_broken_line_is_a_problem_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": \n{"n": 1}\n')
    broken, good = read_rows(path)
    assert isinstance(broken, Problem)
    assert isinstance(good, Example)


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1, "b": 2}', "an object with the keys 'a', 'b'"), ("3", "a number"), ('"x"', "text"), ("null", "null")],
)
def test_a_file_without_a_list(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(LorgnetteError, match=f"holds {message}") as raised:
        read_rows(tmp_path / "a.json")
    assert "a.json" in (raised.value.where or "")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_key_that_is_there_twice_breaks_its_row(tmp_path: Path, suffix: str) -> None:
    items = ['{"n": 1}', '{"n": 1, "x": {"y": 1, "y": 2}}', '{"n": 2, "n": 1}', '{"n": 1}']
    path = tmp_path / f"a{suffix}"
    path.write_text(f"[{','.join(items)}]" if suffix == ".json" else "\n".join(items))
    rows = read_rows(path)
    assert [type(row) for row in rows] == [Example, Problem, Problem, Example]
    for row, key in ((rows[1], "y"), (rows[2], "n")):
        assert f"the key {key!r} is there twice" in str(row)
