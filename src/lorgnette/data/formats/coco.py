"""COCO's captions_*.json and Karpathy's dataset_coco.json → captions, the pictures found beside the file.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "…"}]}
    {"images": [{"filepath": "val2014", "filename": "COCO_….jpg", "split": "test", "sentences": [{"raw": "…"}]}]}

A caption is an example; COCO's rows are its annotations, Karpathy's rows its images. Read only.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorgnette.data import row_location
from lorgnette.data.formats import captions
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_IMAGE_FOLDERS = ("train2017", "val2017", "test2017", "train2014", "val2014", "test2014")


def is_official(value: Mapping[str, Any]) -> bool:
    return "images" in value and "annotations" in value


def is_karpathy(value: Mapping[str, Any]) -> bool:
    images = value.get("images")
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def read_official(
    value: Mapping[str, Any], path: Path, options: row_location.ReadOptions
) -> Iterator[row_location.Row]:
    """One row an annotation, in the file's order, so that a picture's captions need not stand together."""
    places = row_location.create_row_counter(path, options.require_no_name(path), *_find_image_folders(path))
    annotations = _require_list(value, "annotations", path)
    if annotations and not any(isinstance(each, dict) and "caption" in each for each in annotations):
        raise LorgnetteError(
            "the annotations hold no captions (boxes or key points?)",
            where=str(path),
            hint="take the file of captions: captions_train2017.json",
        )
    names = {
        image["id"]: image.get("file_name")
        for image in _require_list(value, "images", path)
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    for annotation in annotations:
        yield from _read_annotation(annotation, names, places.next())


def _read_annotation(
    annotation: object, names: Mapping[int | str, object], location: row_location.RowLocation
) -> Iterator[row_location.Row]:
    def examples() -> list[Example]:
        record = _require_object(annotation, "the annotation")
        shown = record.get("image_id")
        if not isinstance(shown, int | str) or shown not in names:
            raise LorgnetteError(
                f"image_id {shown!r} is not among the images", hint="add the image, or remove the annotation"
            )
        picture = location.resolve_image(names[shown], f"the file_name of image {shown}")
        return captions.build_examples(
            picture, record.get("caption"), location, name="'caption'", id_=row_location.read_id(record, location)
        )

    return location.try_read(examples)


def read_karpathy(
    value: Mapping[str, Any], path: Path, options: row_location.ReadOptions
) -> Iterator[row_location.Row]:
    """One row an image. asked.name picks splits, joined by "+": "train+restval"."""
    images = _require_list(value, "images", path)
    splits = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
    wanted = set(options.name.split("+")) if options.name is not None else set(splits)
    if missing := wanted - set(splits):
        raise UsageError(
            f"no split {', '.join(sorted(missing))!r}", where=str(path), hint=f"name of {', '.join(splits)}"
        )
    places = row_location.create_row_counter(path, options, *_find_image_folders(path))
    for image in images:
        place = places.next()
        if not isinstance(image, dict) or str(image.get("split")) in wanted:
            yield from _read_image(image, place)


def _read_image(image: object, location: row_location.RowLocation) -> Iterator[row_location.Row]:
    def examples() -> list[Example]:
        record = _require_object(image, "the image")
        name = row_location.require_string(record.get("filename"), "'filename'")
        folder = row_location.require_string(record.get("filepath", ""), "'filepath'")
        picture = location.resolve_image(f"{folder}/{name}" if folder else name, "'filename'")
        said = [each.get("raw") for each in row_location.require_objects(record.get("sentences"), "sentences")]
        number = next((record[key] for key in ("cocoid", "imgid") if isinstance(record.get(key), int)), location.id)
        return captions.build_examples(picture, said, location, name="sentences", id_=str(number))

    return location.try_read(examples)


def _find_image_folders(path: Path) -> list[Path]:
    """Where the pictures usually are: beside the file, in images/, or in COCO's own folders there or one level up
    (its archive of annotations unpacks into annotations/ beside them)."""
    tops = (path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images")
    found = [folder for top in tops for folder in (top / part for part in _IMAGE_FOLDERS) if folder.is_dir()]
    return [folder for folder in (*tops[:2], *found) if folder.is_dir()]


def _require_list(value: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    listed = value.get(key)
    if not isinstance(listed, list):
        raise LorgnetteError(
            f"{key!r} is {describe_type(listed)}, not a list", where=str(path), hint="get the file again"
        )
    return listed


def _require_object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not an object", hint="correct or remove it")
    return value
