"""Folders of classes as data: the answer is the folder's name, and the classes are mixed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.data import is_dataset, read, train_test_split
from lorgnette.errors import LorgnetteError
from lorgnette.metrics.answer_kind import choose_metrics
from lorgnette.types import Example, Problem


def read_rows(path: Path) -> list[tuple[str, str]]:
    rows = list(read(path))
    assert all(isinstance(row, Example) for row in rows)
    return [(row.id, row.reference) for row in rows if isinstance(row, Example)]


def test_the_folders_name_is_the_answer(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("dog/b.jpg", "dog/a.PNG", "Great Dane/1.webp", "Great Dane/.hidden.jpg", ".git/x.jpg"):
        make_image(name)
    (tmp_path / "dog" / "README.txt").write_text("about dogs")
    (tmp_path / "LICENSE").touch()
    assert is_dataset(tmp_path)
    assert sorted(read_rows(tmp_path)) == [
        ("Great Dane/1.webp", "Great Dane"), ("dog/a.PNG", "dog"), ("dog/b.jpg", "dog"),
    ]  # fmt: skip
    [example, *_] = read(tmp_path, prompt="What is it?")
    assert isinstance(example, Example)
    assert example.turns[0].text == "What is it?"
    assert (example.source, example.row) == (tmp_path, 1)


def test_every_part_of_the_rows_has_all_classes(make_image: Callable[..., Path], tmp_path: Path) -> None:
    """Held out from the end and cut at the beginning: as in the whole, three cats to a dog."""
    for i in range(24):
        make_image(f"cat/{i:02}.png", color=(i, 0, 0))
    for i in range(8):
        make_image(f"dog/{i:02}.png", color=(0, i, 0))
    examples = [row for row in read(tmp_path) if isinstance(row, Example)]
    train, test = train_test_split(examples, holdout=8, split="image")
    assert Counter(example.reference for example in test) == {"cat": 6, "dog": 2}
    assert Counter(example.reference for example in train) == {"cat": 18, "dog": 6}
    assert Counter(row.reference for row in read(tmp_path, max_rows=8) if isinstance(row, Example)) == {
        "cat": 6, "dog": 2,
    }  # fmt: skip
    assert [example.id for example in examples if example.reference == "dog"] == [f"dog/{i:02}.png" for i in range(8)]
    assert choose_metrics(["auto"], [(example.reference,) for example in examples]).names == ("label",)


def test_names_from_macos_are_composed(make_image: Callable[..., Path], tmp_path: Path) -> None:
    make_image("cafe\u0301/1.png")
    make_image("bar/1.png")
    assert [reference for _, reference in read_rows(tmp_path)] == ["bar", "café"]


def test_what_is_no_image_of_a_class_is_a_problem(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/small/1.png"):
        make_image(name)
    (tmp_path / "empty").mkdir()
    assert [row.message for row in read(tmp_path) if isinstance(row, Problem)] == [
        "dog/small is a folder inside the folder of a class",
        "the folder empty has no image",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["cat/1.png"],  # one class
        ["cat/1.png", "dog/1.png", "1.png"],  # images beside the folders
        ["cat/1.png", "dog/1.png", "dog/1.txt"],  # captions
        ["cat/1.png", "dog/1.png", "dog/labels.csv"],
        ["train/1.png", "test/1.png"],  # parts of a data set
        ["images/1.png", "masks/1.png"],
        ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"],
    ],
)
def test_other_folders_are_no_classes(make_image: Callable[..., Path], tmp_path: Path, names: list[str]) -> None:
    for name in names:
        if name.endswith(".png"):
            make_image(name)
        else:
            (tmp_path / name).write_text("x")
    assert not is_dataset(tmp_path)
    with pytest.raises(LorgnetteError):
        read(tmp_path)


def test_class_folders_one_level_below_are_named(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png"):
        make_image(name)
    with pytest.raises(LorgnetteError) as caught:
        read(tmp_path)
    assert caught.value.hint == f"name the data in it: {tmp_path / 'test'} or {tmp_path / 'train'}"
    assert len(read_rows(tmp_path / "train")) == 2
