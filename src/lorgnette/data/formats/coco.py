"""COCO's captions_*.json and Karpathy's dataset_coco.json → captions. Read only.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "…"}]}
    {"images": [{"filepath": "val2014", "filename": "COCO_….jpg", "split": "test", "sentences": [{"raw": "…"}]}]}

Each caption becomes an example; a row is an annotation in COCO's file, an image in Karpathy's. The images are found
beside the file.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import captions
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_IMAGE_FOLDERS = ("train2017", "val2017", "test2017", "train2014", "val2014", "test2014")


def is_official(value: Mapping[str, Any]) -> bool:
    return "images" in value and "annotations" in value


def is_karpathy(value: Mapping[str, Any]) -> bool:
    images = value.get("images")
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def read_official(value: Mapping[str, Any], path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row per annotation in the file's order, so the captions of one image may be far apart."""
    counter = RowCounter(path, options.require_no_name(path), *_find_image_folders(path))
    annotations = _require_list(value, "annotations", path)
    if annotations and not any(isinstance(item, dict) and "caption" in item for item in annotations):
        message = "the annotations have no captions (boxes or key points?)"
        raise LorgnetteError(message, where=str(path), hint="use the file of captions: captions_train2017.json")
    names = {
        image["id"]: image.get("file_name")
        for image in _require_list(value, "images", path)
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    for annotation in annotations:
        location = counter.next()
        yield from location.try_read(partial(_read_annotation, annotation, names, location))


def _read_annotation(annotation: object, names: Mapping[int | str, object], location: RowLocation) -> list[Example]:
    record = _require_object(annotation, "the annotation")
    image_id = record.get("image_id")
    if not isinstance(image_id, int | str) or image_id not in names:
        raise LorgnetteError(f"image_id {image_id!r} is not among the images", hint="add the image")
    image = location.resolve_image(names[image_id], f"the file_name of image {image_id}")
    id_ = fields.read_id(record, location.id)
    return captions.build_examples(image, record.get("caption"), location, name="'caption'", id_=id_)


def read_karpathy(value: Mapping[str, Any], path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row per image. options.name selects splits, joined by "+": "train+restval"."""
    images = _require_list(value, "images", path)
    splits = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
    wanted = set(options.name.split("+")) if options.name is not None else set(splits)
    if missing := wanted - set(splits):
        message = f"no split {', '.join(sorted(missing))!r}"
        raise UsageError(message, where=str(path), hint=f"set name to one of {', '.join(splits)}")
    counter = RowCounter(path, options, *_find_image_folders(path))
    for image in images:
        location = counter.next()
        if not isinstance(image, dict) or str(image.get("split")) in wanted:
            yield from location.try_read(partial(_read_image, image, location))


def _read_image(image: object, location: RowLocation) -> list[Example]:
    record = _require_object(image, "the image")
    name = fields.require_string(record.get("filename"), "'filename'")
    folder = fields.require_string(record.get("filepath", ""), "'filepath'")
    resolved = location.resolve_image(f"{folder}/{name}" if folder else name, "'filename'")
    texts = [sentence.get("raw") for sentence in fields.require_objects(record.get("sentences"), "sentences")]
    id_ = next((record[key] for key in ("cocoid", "imgid") if isinstance(record.get(key), int)), location.id)
    return captions.build_examples(resolved, texts, location, name="sentences", id_=str(id_))


def _find_image_folders(path: Path) -> list[Path]:
    """The usual folders of the images: the file's own, its images/, and COCO's folders in these or one level up.

    COCO's archive of annotations unpacks into annotations/ beside the image folders.
    """
    parents = (path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images")
    coco_folders = [parent / name for parent in parents for name in _IMAGE_FOLDERS]
    return [folder for folder in (*parents[:2], *coco_folders) if folder.is_dir()]


def _require_list(value: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    items = value.get(key)
    if not isinstance(items, list):
        raise LorgnetteError(f"{key!r} is {describe_type(items)}, not a list", where=str(path), hint="correct the file")
    return items


def _require_object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not an object", hint="correct or remove it")
    return value
