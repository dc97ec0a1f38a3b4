import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data import read
from lorgnette.data.checks import data_report
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem

OFFICIAL: dict[str, Any] = {
    "info": {},
    "images": [{"id": 9, "file_name": "9.jpg", "license": 1}, {"id": 25, "file_name": "25.jpg"}],
    "annotations": [
        {"image_id": 25, "id": 11, "caption": "Two."},
        {"image_id": 9, "id": 12, "caption": "One "},
        {"image_id": 25, "id": 10, "caption": "Three."},
    ],
}
KARPATHY: dict[str, Any] = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014", "filename": "9.jpg", "cocoid": 9, "split": "test",
            "sentences": [{"raw": "One", "tokens": ["one"]}, {"raw": "Uno"}],
        },
        {"filename": "25.jpg", "imgid": 1, "split": "train", "sentences": [{"raw": "Two."}]},
        {"filename": "25.jpg", "split": "restval", "sentences": [{"raw": "Three."}]},
    ],
}  # fmt: skip


@pytest.fixture
def folder(picture: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(value: object, *pictures: str, name: str = "captions_train2017.json") -> Path:
        for each in pictures:
            picture(each)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return make


def texts(path: Path, **asked: Any) -> list[str]:
    rows = list(read(path, **asked))
    assert all(isinstance(row, Example) for row in rows), rows
    return [row.reference for row in rows if isinstance(row, Example)]


def test_a_caption_is_an_example_in_the_files_order(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = folder(OFFICIAL, "train2017/9.jpg", "train2017/25.jpg")
    rows = list(read(path, prompt="what?"))
    assert [(row.id, row.row, row.reference) for row in rows if isinstance(row, Example)] == [
        ("11", 1, "Two."),
        ("12", 2, "One "),
        ("10", 3, "Three."),
    ]
    assert isinstance(rows[0], Example)
    assert rows[0].turns[0].text == "what?"
    assert rows[0].images[0].path == tmp_path / "train2017" / "25.jpg"
    assert data_report(rows).usable == 3


@pytest.mark.parametrize("where", [".", "images", "val2017", "train2014", "images/val2014", "../train2017"])
def test_pictures_are_looked_for_in_cocos_own_folders(folder: Callable[..., Path], where: str) -> None:
    path = folder(OFFICIAL, f"annotations/{where}/9.jpg", f"annotations/{where}/25.jpg", name="annotations/c.json")
    assert data_report(read(path)).usable == 3


def test_pictures_from_a_folder_or_a_zip(folder: Callable[..., Path], tmp_path: Path) -> None:
    path = folder(OFFICIAL, "elsewhere/9.jpg", "elsewhere/25.jpg")
    assert data_report(read(path, images_from=tmp_path / "elsewhere")).usable == 3
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as file:
        for name in ("9.jpg", "25.jpg"):
            file.write(tmp_path / "elsewhere" / name, f"train2017/{name}")
    report = data_report(read(path, images_from=tmp_path / "train2017.zip", images_to=tmp_path / "laid"))
    assert report.usable == 3
    assert len(list((tmp_path / "laid").iterdir())) == 1  # both pictures are the same bytes
    assert data_report(read(path)).problems[0].what.startswith("picture is missing")


@pytest.mark.parametrize(
    ("annotation", "what"),
    [
        ({"image_id": 7, "caption": "x"}, "image_id 7 is not among the images"),
        ({"image_id": [9], "caption": "x"}, "image_id [9] is not among the images"),
        ({"image_id": 9, "caption": " \n"}, "caption is empty"),
        ({"image_id": 9}, "'caption' is null"),
        ({"image_id": 30, "caption": "x"}, "file_name of image 30 is null"),
        ("text", "the annotation is text"),
    ],
)
def test_broken_annotations(folder: Callable[..., Path], annotation: object, what: str) -> None:
    images = [*OFFICIAL["images"], {"id": 30}, "text", {"id": None}]
    path = folder({"images": images, "annotations": [*OFFICIAL["annotations"], annotation]})
    *good, bad = read(path)
    assert len(good) == 3
    assert isinstance(bad, Problem)
    assert what in bad.message
    assert bad.row == 4


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"images": [], "annotations": [{"image_id": 9, "bbox": [1, 2, 3, 4]}]}, "no captions (boxes"),
        ({"images": [], "annotations": {}}, "'annotations' is an object"),
        ({"images": 3, "annotations": []}, "'images' is a number"),
        ({"images": [], "categories": []}, "an object with the keys 'images', 'categories'"),
    ],
)
def test_another_file(folder: Callable[..., Path], value: object, what: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        list(read(folder(value)))
    assert what in caught.value.message
    assert "captions_train2017.json" in (caught.value.where or "")


def test_karpathys_file_and_its_splits(folder: Callable[..., Path]) -> None:
    path = folder(KARPATHY, "val2014/9.jpg", "images/25.jpg", name="dataset_coco.json")
    rows = [row for row in read(path) if isinstance(row, Example)]
    assert [(row.id, row.row, row.reference) for row in rows] == [
        ("9_1", 1, "One"),
        ("9_2", 1, "Uno"),
        ("1", 2, "Two."),
        ("identity_3", 3, "Three."),
    ]
    assert data_report(rows).usable == 4
    assert texts(path, name="test") == ["One", "Uno"]
    assert texts(path, name="restval+train") == ["Two.", "Three."]
    assert texts(path, name="train+restval", rows=1) == ["Two."]
    with pytest.raises(UsageError, match="'val'") as caught:
        list(read(path, name="val"))
    assert "restval, test, train" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ({"split": "x", "sentences": [{"raw": "a"}]}, "'filename' is null"),
        ({"split": "x", "filename": "a.jpg", "sentences": []}, "no caption"),
        ({"split": "x", "filename": "a.jpg", "sentences": [{"tokens": []}]}, "sentences is null"),
        ({"split": "x", "filename": "a.jpg"}, "sentences is null"),
        ("text", "the image is text"),
    ],
)
def test_broken_images(folder: Callable[..., Path], image: object, what: str) -> None:
    path = folder({"images": [*KARPATHY["images"], image]})
    *good, bad = read(path)
    assert len(good) == 4
    assert isinstance(bad, Problem)
    assert what in bad.message


def test_the_real_annotations_say_what_the_csv_says(shared: Path) -> None:
    def said(path: Path) -> set[tuple[str, str]]:
        return {(row.images[0].path.name, row.reference) for row in read(path) if isinstance(row, Example)}

    report = data_report(read(shared / "coco" / "captions_train2017.json"))
    assert (report.rows, report.usable, report.pictures) == (400, 400, 80)
    assert said(shared / "coco" / "captions_train2017.json") == said(shared / "coco" / "captions.csv")
