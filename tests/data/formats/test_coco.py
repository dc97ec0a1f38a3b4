import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from lorgnette.config import BOX_PROMPT
from lorgnette.data import check_rows, read
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Box, Example, Problem

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
def write_file(make_image: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(value: object, *images: str, name: str = "captions_train2017.json") -> Path:
        for image in images:
            make_image(image)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    return make


def read_texts(path: Path, **options: Any) -> list[str]:
    rows = list(read(path, **options))
    assert all(isinstance(row, Example) for row in rows), rows
    return [row.reference for row in rows if isinstance(row, Example)]


def test_each_annotation_is_an_example_in_the_files_order(write_file: Callable[..., Path], tmp_path: Path) -> None:
    path = write_file(OFFICIAL, "train2017/9.jpg", "train2017/25.jpg")
    rows = list(read(path, prompt="what?"))
    assert [(row.id, row.row, row.reference) for row in rows if isinstance(row, Example)] == [
        ("11", 1, "Two."),
        ("12", 2, "One"),
        ("10", 3, "Three."),
    ]
    assert isinstance(rows[0], Example)
    assert rows[0].turns[0].text == "what?"
    assert [row.is_trimmed for row in rows if isinstance(row, Example)] == [False, True, False]
    assert rows[0].images[0].path == tmp_path / "train2017" / "25.jpg"
    assert check_rows(rows).num_usable == 3


@pytest.mark.parametrize(
    "image_folder", [".", "images", "val2017", "train2014", "images/val2014", "../train2017", "..", "../images"]
)
def test_images_are_found_in_cocos_folders(write_file: Callable[..., Path], image_folder: str) -> None:
    path = write_file(
        OFFICIAL, f"annotations/{image_folder}/9.jpg", f"annotations/{image_folder}/25.jpg", name="annotations/c.json"
    )
    assert check_rows(read(path)).num_usable == 3


@pytest.mark.parametrize("image_folder", ["images", "images/default"])
def test_images_of_cvat_are_found_also_in_a_zip(
    write_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: str
) -> None:
    """The file's own set comes before another one whose images have the same names."""
    names = "images/train2017/9.jpg", f"{image_folder}/9.jpg", f"{image_folder}/25.jpg"
    path = write_file(OFFICIAL, *names, name="annotations/instances_default.json")
    monkeypatch.chdir(path.parent)
    rows = [row for row in read(Path(path.name)) if isinstance(row, Example)]
    assert [row.images[0].path.parent for row in rows] == [tmp_path / image_folder] * 3
    with zipfile.ZipFile(tmp_path / "cvat.zip", "w") as file:
        for name in ("annotations/instances_default.json", *names[1:]):
            file.write(tmp_path / name, name)
    report = check_rows(read(tmp_path / "cvat.zip"))
    assert (report.num_usable, report.num_images) == (3, 1)  # both images have the same bytes


def test_a_zip_of_annotations_finds_the_images_beside_it(write_file: Callable[..., Path], tmp_path: Path) -> None:
    path = write_file(OFFICIAL, "val2017/9.jpg", "val2017/25.jpg")
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as file:
        file.write(path, "annotations/captions_val2017.json")
    assert check_rows(read(tmp_path / "annotations.zip")).num_usable == 3


def test_images_come_from_a_folder_or_a_zip(write_file: Callable[..., Path], tmp_path: Path) -> None:
    path = write_file(OFFICIAL, "elsewhere/9.jpg", "elsewhere/25.jpg")
    assert check_rows(read(path, images_from=tmp_path / "elsewhere")).num_usable == 3
    with zipfile.ZipFile(tmp_path / "train2017.zip", "w") as file:
        for name in ("9.jpg", "25.jpg"):
            file.write(tmp_path / "elsewhere" / name, f"train2017/{name}")
    report = check_rows(read(path, images_from=tmp_path / "train2017.zip", images_to=tmp_path / "extracted"))
    assert report.num_usable == 3
    assert len(list((tmp_path / "extracted").iterdir())) == 1  # both images have the same bytes
    assert check_rows(read(path)).problems[0].message.startswith("image is missing")


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 7, "caption": "x"}, "image_id 7 is not among the images"),
        ({"image_id": [9], "caption": "x"}, "image_id [9] is not among the images"),
        ({"image_id": 9, "caption": " \n"}, "caption is empty"),
        ({"image_id": 9}, "the caption is empty"),
        ({"image_id": 30, "caption": "x"}, "file_name of image 30 is null"),
        ("text", "the annotation is text"),
    ],
)
def test_broken_annotations_are_problems(write_file: Callable[..., Path], annotation: object, message: str) -> None:
    images = [*OFFICIAL["images"], {"id": 30}, "text", {"id": None}]
    path = write_file({"images": images, "annotations": [*OFFICIAL["annotations"], annotation]})
    *good, bad = read(path)
    assert len(good) == 3
    assert isinstance(bad, Problem)
    assert message in bad.message
    assert bad.row == 4


def test_an_id_of_two_images_breaks_all_its_annotations(write_file: Callable[..., Path]) -> None:
    """The captions of both went to the later file's image."""
    images = [*OFFICIAL["images"], {"id": 25, "file_name": "26.jpg"}, {"id": 9, "file_name": "9.jpg"}]
    two, one, three = read(write_file(OFFICIAL | {"images": images}, "9.jpg", "25.jpg", "26.jpg"))
    assert isinstance(one, Example)
    for row in (two, three):
        assert isinstance(row, Problem)
        assert row.message == "image_id 25 stands for several images: '25.jpg' and '26.jpg'"


def test_keys_beyond_cocos_own_are_named(write_file: Callable[..., Path]) -> None:
    value: dict[str, Any] = json.loads(json.dumps(OFFICIAL))
    value["annotations"][1]["language"] = value["images"][0]["camera"] = "x"
    two, one, _ = read(write_file(value))
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert (one.unread_keys, two.unread_keys) == (("language", "images[].camera"), ())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"images": [], "annotations": [{"image_id": 9, "keypoints": [1, 2]}]}, "no captions and no boxes"),
        ({"images": [], "annotations": [{"image_id": 9, "bbox": [1, 2, 3, 4]}]}, "'categories' is null"),
        ({"images": [], "annotations": {}}, "'annotations' is an object"),
        ({"images": 3, "annotations": []}, "'images' is a number"),
        ({"images": [], "categories": []}, "an object with the keys 'images', 'categories'"),
    ],
)
def test_another_file_is_refused(write_file: Callable[..., Path], value: object, message: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        list(read(write_file(value)))
    assert message in caught.value.message
    assert "captions_train2017.json" in (caught.value.where or "")


def test_karpathys_file_is_read_by_split(write_file: Callable[..., Path]) -> None:
    path = write_file(KARPATHY, "val2014/9.jpg", "images/25.jpg", name="dataset_coco.json")
    rows = [row for row in read(path) if isinstance(row, Example)]
    assert [(row.id, row.row, row.reference) for row in rows] == [
        ("9_1", 1, "One"),
        ("9_2", 1, "Uno"),
        ("1", 2, "Two."),
        ("identity_3", 3, "Three."),
    ]
    assert check_rows(rows).num_usable == 4
    assert read_texts(path, name="test") == ["One", "Uno"]
    assert read_texts(path, name="restval+train") == ["Two.", "Three."]
    assert read_texts(path, name="train+restval", max_rows=1) == ["Two."]
    with pytest.raises(UsageError, match="'val'") as caught:
        list(read(path, name="val"))
    assert "restval, test, train" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"split": "x", "sentences": [{"raw": "a"}]}, "'filename' is null"),
        ({"split": "x", "filename": "a.jpg", "sentences": []}, "the caption is empty"),
        ({"split": "x", "filename": "a.jpg", "sentences": [{"tokens": []}]}, "'raw' is null"),
        ({"split": "x", "filename": "a.jpg"}, "sentences is null"),
        ("text", "the image is text"),
    ],
)
def test_broken_images_are_problems(write_file: Callable[..., Path], image: object, message: str) -> None:
    path = write_file({"images": [*KARPATHY["images"], image]})
    *good, bad = read(path)
    assert len(good) == 4
    assert isinstance(bad, Problem)
    assert message in bad.message


def test_the_real_annotations_equal_the_csv(shared: Path) -> None:
    def read_captions(path: Path) -> set[tuple[str, str]]:
        return {(row.images[0].path.name, row.reference) for row in read(path) if isinstance(row, Example)}

    report = check_rows(read(shared / "coco" / "captions_train2017.json"))
    assert (report.num_rows, report.num_usable, report.num_images) == (400, 400, 80)
    assert read_captions(shared / "coco" / "captions_train2017.json") == read_captions(shared / "coco" / "captions.csv")


INSTANCES: dict[str, Any] = {
    "images": [
        {"id": 9, "file_name": "9.jpg", "width": 32, "height": 24},
        {"id": 25, "file_name": "25.jpg"},
        {"id": 26, "file_name": "26.jpg"},
        {"id": 27, "file_name": "27.jpg"},
    ],
    "categories": [{"id": 3, "name": "car ", "supercategory": "vehicle"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 25, "category_id": 3, "bbox": [1, 2.5, 10, 20], "area": 99.5, "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 32, 24], "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 3, "image_id": 25, "category_id": 1, "bbox": [5, 5, 5, 5]},
        {"id": 4, "image_id": 25, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 5, "image_id": 26, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
}


def test_a_file_of_boxes_is_read_image_by_image(write_file: Callable[..., Path]) -> None:
    path, remarks = (
        write_file(INSTANCES, "9.jpg", "25.jpg", "26.jpg", "27.jpg", name="instances_val2017.json"),
        list[str](),
    )
    first, second = read(path, on_columns=remarks.append)
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert (first.id, first.row, first.boxes) == ("9", 1, (Box((0, 0, 32, 24), "person"),))
    assert first.unread_keys == ("annotations[].segmentation",)
    # x, y, width, height become corners; the order is the file's.
    assert second.turns[1].parts == (Box((1, 2.5, 11, 22.5), "car"), Box((5, 5, 10, 10), "person"))
    assert (second.id, second.row, second.turns[0].text) == ("25", 2, BOX_PROMPT)
    assert remarks == [
        "instances_val2017.json: annotations of crowds (2: id 4, 5) and images without other boxes (2) are left out"
    ]
    assert check_rows(read(path)).num_boxes == 3
    assert isinstance(own := next(iter(read(path, prompt="Where?"))), Example)
    assert own.turns[0].text == "Where?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 7}, "annotation 2 of image 9 has category_id 7, which is not among the categories"),
        ({"bbox": [0, 0, 5]}, "the bbox of annotation 2 of image 9 is not a list of four numbers"),
        ({"bbox": [0.1, 0.2, 0.5, 0.4]}, "annotation 2 (person [0.1, 0.2, 0.5, 0.4]) is smaller than a pixel"),
        ({"bbox": [0, 0, 0, 5]}, "annotation 2 (person [0, 0, 0, 5]) has no area"),
        ({"bbox": [0, 0, 40, 5]}, "annotation 2 (person [0, 0, 40, 5]) lies outside its image, which has 32×24 pixels"),
        (
            {"bbox": [20, 5, 20, 5]},
            "annotation 2 (person [20, 5, 20, 5]) lies outside its image, which has 32×24 pixels",
        ),
    ],
)
def test_a_broken_box_is_a_problem_of_its_image(
    write_file: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    value = json.loads(json.dumps(INSTANCES))
    value["annotations"][1] |= change
    report = check_rows(read(write_file(value, "9.jpg", "25.jpg", "26.jpg", "27.jpg", name="instances.json")))
    [problem] = report.problems
    assert (problem.row, problem.fact, report.num_usable) == (1, message, 1)
    if "outside" in message or "smaller" in message:
        assert problem.hint == "give x, y, width, height in pixels of the stored image, or remove it"


@pytest.mark.parametrize(
    ("size", "orientation", "message"),
    [
        ((32, 24), 1, ""),
        ((None, 24), 1, ""),
        ((64, 48), 1, "the data gives its image 64×48 pixels, but the file has 32×24"),
        ((24, 32), 1, "the data gives its image 24×32 pixels, but the file has 32×24"),
        (("32", 24), 1, "the width and height of image 9 are '32' and 24, not numbers"),
        ((24, 32), 6, ""),
        (
            (32, 24), 6,
            "the data gives its image 32×24 pixels, but the file has 24×32: its EXIF rotation swaps the sides, and the "
            "boxes are those of the stored image",
        ),
    ],
)  # fmt: skip
def test_boxes_of_an_image_of_another_size_are_a_problem(
    write_file: Callable[..., Path], tmp_path: Path, size: tuple[Any, Any], orientation: int, message: str
) -> None:
    """They would be at other places in silence."""
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    PIL.Image.new("RGB", (32, 24)).save(tmp_path / "9.jpg", exif=exif)
    value = json.loads(json.dumps(INSTANCES))
    value["images"][0] |= {"width": size[0], "height": size[1]}
    value["annotations"][1]["bbox"] = [0, 0, 20, 20]
    report = check_rows(read(write_file(value, "25.jpg", name="instances.json")))
    assert [problem.fact for problem in report.problems] == ([message] if message else [])


def test_attributes_are_known_and_a_rotation_is_named(write_file: Callable[..., Path]) -> None:
    """CVAT writes them to each annotation."""
    value = json.loads(json.dumps(INSTANCES))
    for annotation, rotation in zip(value["annotations"], (0.0, 12.5, 0, 0, 0), strict=True):
        annotation["attributes"] = {"occluded": False, "rotation": rotation}
    remarks = list[str]()
    first, second = read(write_file(value, name="instances.json"), on_columns=remarks.append)
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert (first.unread_keys, second.unread_keys) == (("annotations[].segmentation",), ())
    assert remarks[1:] == ["instances.json: annotations with a 'rotation' (1: id 2) are read as upright boxes"]


@pytest.mark.parametrize(
    ("key", "number", "change", "message"),
    [
        ("annotations", 1, {"image_id": 99}, "annotation 2 has image_id 99, which is not among the images"),
        ("annotations", 1, {"iscrowd": "1"}, "annotation 2 has iscrowd '1', which is not 0 or 1"),
        ("annotations", 1, 5, "annotation 2 is a number, not an object"),
        ("categories", 1, {"id": 3}, "category 3 has several names: 'car' and 'person'"),
        ("categories", 0, {"name": " "}, "category 1 has no id or no name"),
        ("categories", 0, {"name": 5}, "category 1 has no id or no name"),
    ],
)
def test_a_file_whose_boxes_are_not_clear_is_refused(
    write_file: Callable[..., Path], key: str, number: int, change: Any, message: str
) -> None:
    value = json.loads(json.dumps(INSTANCES))
    value[key][number] = value[key][number] | change if isinstance(change, dict) else change
    with pytest.raises(LorgnetteError, match=message) as caught:
        list(read(write_file(value, name="instances.json")))
    assert "instances.json" in str(caught.value.where)


def test_boxes_of_one_id_of_two_images_are_problems(write_file: Callable[..., Path]) -> None:
    """An image that is in the file twice is read once; an image whose id is no number or text has no boxes."""
    value = json.loads(json.dumps(INSTANCES))
    value["images"] += [{"id": 25, "file_name": "26.jpg"}, {"id": 9, "file_name": "9.jpg"}, {"id": [9]}]
    first, *others = read(write_file(value, "9.jpg", "25.jpg", "26.jpg", "27.jpg", name="instances.json"))
    assert isinstance(first, Example)
    assert first.id == "9"
    assert [(row.row, "stands for several images" in row.message) for row in others] == [(2, True), (5, True)]  # type: ignore[union-attr]
