import json
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.hub.rows import Choice
from lorgnette.hub.table import TableRows, records

REPOSITORY = Repository("modelscope", "me/set", "master", (RepositoryFile("images/a.jpg", 1, None, "http://hub/a"),))
COCO = """,uniq_id,image_id,caption,image
0,1,11195,"A skier, standing",https://h/train2014/COCO_train2014_000000011195.jpg
1,2,11195,one && two,https://h/train2014/COCO_train2014_000000011195.jpg
2,3,x,"over
lines",https://h/a.jpg?sign=1
"""


def read(path: Path, content: bytes | str, after: Any = None, **choice: Any) -> list[Any]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(TableRows([lambda: path], REPOSITORY, Choice(**choice)).read(after))


def test_the_tutorials_table(tmp_path: Path) -> None:
    rows = read(tmp_path / "train.csv", COCO)
    assert [row.captions for row, _ in rows] == [("A skier, standing",), ("one", "two"), ("over\nlines",)]
    assert [row.number for row, _ in rows] == [11195, 11195, None]
    assert rows[0][0].name == "COCO_train2014_000000011195.jpg"
    assert (rows[2][0].name, rows[2][0].picture, rows[2][0].hub) == ("a.jpg", "https://h/a.jpg?sign=1", "")
    assert rows[2][0].place == "train.csv, row 3"
    assert [token for _, token in rows] == [[1], [2], [3]]
    assert [token for _, token in read(tmp_path / "train.csv", COCO, after=[2])] == [[3]]


def test_every_form_gives_the_same_rows(tmp_path: Path, zipped: Any) -> None:
    objects = [{"image": "images/a.jpg", "text": "one"}, {"image": "a.jpg", "text": "two"}]
    forms: dict[str, bytes | str] = {
        "a.csv": "\ufeffimage,text\r\nimages/a.jpg,one\r\na.jpg,two\r\n",
        "a.tsv": "image\ttext\nimages/a.jpg\tone\na.jpg\ttwo\n",
        "a.jsonl": "\n".join(map(json.dumps, objects)) + "\n\n",
        "a.json": json.dumps(objects),
        "a.csv.zip": zipped(**{"x/a.csv": "image,text\nimages/a.jpg,one\na.jpg,two\n", "README.txt": "hello"}),
    }
    for name, content in forms.items():
        rows = [row for row, _ in read(tmp_path / name, content)]
        assert [(row.picture, row.captions, row.hub) for row in rows] == [
            ("http://hub/a", ("one",), "modelscope"),
            ("http://hub/a", ("two",), "modelscope"),
        ]


def test_several_files_are_one_table_and_are_brought_when_needed(tmp_path: Path) -> None:
    brought = []

    def file(name: str, rows: int) -> Any:
        def bring() -> Path:
            brought.append(name)
            (tmp_path / name).write_text("image,text\n" + f"http://h/{name}.jpg,t\n" * rows)
            return tmp_path / name

        return bring

    reader = TableRows([file("a.csv", 3), file("b.csv", 3)], REPOSITORY, Choice())
    first = reader.read(None)
    assert [next(first)[1] for _ in range(3)] == [[1], [2], [3]]
    assert brought == ["a.csv"]
    assert [row.place for row, _ in reader.read([3])] == [f"b.csv, row {n}" for n in (1, 2, 3)]
    sample = TableRows([file("a.csv", 30), file("b.csv", 30)], REPOSITORY, Choice(sample=10, seed=1))
    tokens = [token[0] for _, token in sample.read(None)]
    assert len(tokens) == 10
    assert [token[0] for _, token in sample.read([tokens[4]])] == tokens[5:]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", b"\xff\xfeimage", "the file is not UTF-8"),
        ("a.jsonl", "{", "the table is broken"),
        ("a.jsonl", "[1]", "a row is not an object"),
        ("a.json", '{"a": 1}', "it is not a list"),
        ("a.csv", 'image,text\n"' + "x" * 200_000, "the table is broken: field larger"),
        ("a.zip", b"PK no", "the zip file cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes | str, match: str, tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match=match) as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_a_zip_of_two_tables_is_refused(tmp_path: Path, zipped: Any) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"a.csv": "x", "b.csv": "y"}))
    with pytest.raises(LorgnetteError, match=r"holds 2 tables \(a\.csv, b\.csv\), not one"):
        list(records(tmp_path / "a.zip"))
    (tmp_path / "bomb.zip").write_bytes(zipped(**{"a.csv": bytes(40 << 20)}))
    with pytest.raises(LorgnetteError, match="would unpack from"):
        list(records(tmp_path / "bomb.zip"))
