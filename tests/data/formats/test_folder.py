from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.data import read
from lorgnette.data.checks import data_report
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem


def said(path: Path) -> list[tuple[str, str, int]]:
    rows = list(read(path))
    assert not data_report(rows).problems
    return [(row.images[0].path.name, row.reference, row.row) for row in rows if isinstance(row, Example)]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("metadata.csv", "file_name,text\nb.png,two\nsub/a.jpg,one\n", (2, 3)),
        (
            "metadata.jsonl",
            '{"file_name": "b.png", "caption": "two"}\n{"file_name": "sub/a.jpg", "text": "one"}\n',
            (1, 2),
        ),
    ],
)
def test_an_image_folder_with_metadata(
    picture: Callable[..., Path], tmp_path: Path, name: str, content: str, rows: tuple[int, int]
) -> None:
    picture("sub/a.jpg")
    picture("b.png")
    picture("unmentioned.png")
    (tmp_path / name).write_text(content)
    assert said(tmp_path) == [("b.png", "two", rows[0]), ("a.jpg", "one", rows[1])]
    assert said(tmp_path / name) == said(tmp_path)


def test_pictures_with_a_text_each(picture: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "a.v2.webp", ".hidden.jpg"):
        picture(name)
    for name, text in (("b", "two\nlines\n"), ("a", " one"), ("a.v2", "é")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "notes.md").touch()
    assert said(tmp_path) == [("a.PNG", "one", 1), ("a.v2.webp", "é", 2), ("b.jpg", "two\nlines", 3)]


def test_a_picture_or_a_text_alone_is_a_problem(picture: Callable[..., Path], tmp_path: Path) -> None:
    picture("a.jpg")
    picture("b.jpg")
    picture("d.jpg")
    for name, text in (("a.txt", b"one"), ("c.txt", b"three"), ("d.txt", b"\xff")):
        (tmp_path / name).write_bytes(text)
    good, *bad = read(tmp_path)
    assert isinstance(good, Example)
    assert [row.message for row in bad if isinstance(row, Problem)] == [
        "b.jpg has no text",
        "c.txt has no picture",
        "d.txt is not UTF-8: byte 1",
    ]


def test_what_a_folder_may_not_be(picture: Callable[..., Path], tmp_path: Path) -> None:
    picture("a.jpg")
    with pytest.raises(UsageError, match="nothing in it says what its pictures show"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(LorgnetteError, match="no parts with names"):
        read(tmp_path, name="train")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="both metadata"):
        read(tmp_path)
