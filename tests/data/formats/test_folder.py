import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.data import check_rows, read
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem


def read_captions(path: Path) -> list[tuple[str, str, int]]:
    rows = list(read(path))
    assert not check_rows(rows).problems
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
def test_a_folder_with_metadata_is_read(
    make_image: Callable[..., Path], tmp_path: Path, name: str, content: str, rows: tuple[int, int]
) -> None:
    make_image("sub/a.jpg")
    make_image("b.png")
    make_image("unmentioned.png")
    (tmp_path / name).write_text(content)
    assert read_captions(tmp_path) == [("b.png", "two", rows[0]), ("a.jpg", "one", rows[1])]
    assert read_captions(tmp_path / name) == read_captions(tmp_path)


def test_images_with_their_own_text_files_are_read(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "a.v2.webp", ".hidden.jpg"):
        make_image(name)
    for name, text in (("b", "two\nlines\n"), ("a", " one"), ("a.v2", "é")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "notes.md").touch()
    assert read_captions(tmp_path) == [("a.PNG", "one", 1), ("a.v2.webp", "é", 2), ("b.jpg", "two\nlines", 3)]


def test_an_image_or_a_text_alone_is_a_problem(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.jpg")
    make_image("b.jpg")
    make_image("d.jpg")
    for name, text in (("a.txt", b"one"), ("c.txt", b"three"), ("d.txt", b"\xff")):
        (tmp_path / name).write_bytes(text)
    good, *bad = read(tmp_path)
    assert isinstance(good, Example)
    assert [row.message for row in bad if isinstance(row, Problem)] == [
        "b.jpg has no text",
        "c.txt has no image",
        "d.txt is not UTF-8: byte 1",
    ]


def test_metadata_may_hold_conversations(make_image: Callable[..., Path], tmp_path: Path) -> None:
    """bugs/imagefolder-conversations: "'caption' is null", although the file has no captions."""
    make_image("a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A box."}]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "conversations": turns}))
    assert read_captions(tmp_path) == [("a.png", "A box.", 1)]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "size": 3}))
    [row] = read(tmp_path)
    assert isinstance(row, Problem)
    assert (row.message, row.hint) == (
        "it is not clear which column holds the captions; the columns are file_name (path), size (number)",
        "name it: --caption-column NAME, or data.caption_column=NAME",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.parquet", "test-0.parquet"], "several splits: test, train"),
        (["a.parquet", "a.tar"], "several formats: .parquet, .tar"),
        (["metadata.csv", "a.tar"], r"both metadata\.csv and shards \(a\.tar\)"),
    ],
)
def test_shards_of_several_data_sets_are_not_mixed(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=message):
        read(tmp_path)


def test_data_below_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").touch()
    for name, hint in (("rows.jsonl", "data/rows.jsonl"), ("train-0.parquet", "data"), ("metadata.csv", "data")):
        (tmp_path / "data" / name).touch()
        with pytest.raises(UsageError) as caught:
            read(tmp_path)
        assert caught.value.hint == f"name the data in it: {tmp_path / hint}"
        (tmp_path / "data" / name).unlink()
    for name in ("test.csv", "train.csv"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as caught:
        read(tmp_path)
    assert caught.value.hint == f"name the data in it: {tmp_path / 'test.csv'} or {tmp_path / 'train.csv'}"


def test_a_folder_that_is_no_dataset_is_refused(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("a.jpg")
    with pytest.raises(UsageError, match="no file in it describes its images"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(LorgnetteError, match="no named parts"):
        read(tmp_path, name="train")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="both metadata"):
        read(tmp_path)
