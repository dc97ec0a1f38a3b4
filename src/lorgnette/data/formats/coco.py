"""COCO's captions_*.json and Karpathy's dataset_coco.json → captions. Read only.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "…"}]}
    {"images": [{"filepath": "val2014", "filename": "COCO_….jpg", "split": "test", "sentences": [{"raw": "…"}]}]}

Each caption becomes an example; a row is an annotation in COCO's file, an image in Karpathy's. The images are found
beside the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import captions
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation
from lorgnette.data.text_files import BrokenRow, describe_type
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_IMAGE_FOLDERS = ("train2017", "val2017", "test2017", "train2014", "val2014", "test2014")
_IMAGE_KEYS = ("id", "file_name", "width", "height", "license", "date_captured", "coco_url", "flickr_url")
"""What COCO writes of an image; the size and the source are not needed."""
_KARPATHY_KEYS = ("filepath", "filename", "split", "sentences", "cocoid", "imgid", "sentids")
_SENTENCE_KEYS = ("raw", "tokens", "imgid", "sentid")
"""`tokens` are the words of `raw`; the ids number what is read."""


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
    images = _map_images(_require_list(value, "images", path))
    for annotation in annotations:
        location = counter.next()
        yield from location.try_read(partial(_read_annotation, annotation, images, location))


def _map_images(items: Sequence[object]) -> dict[int | str, list[Mapping[str, Any]]]:
    """Image id → its image: several if the file gives one id to several files."""
    images: dict[int | str, list[Mapping[str, Any]]] = {}
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("id"), int | str):
            known = images.setdefault(item["id"], [])
            if all(image.get("file_name") != item.get("file_name") for image in known):
                known.append(item)
    return images


def _read_annotation(
    annotation: object, images: Mapping[int | str, Sequence[Mapping[str, Any]]], location: RowLocation
) -> list[Example]:
    record = _require_object(annotation, "the annotation")
    image_id = record.get("image_id")
    if not isinstance(image_id, int | str) or image_id not in images:
        raise LorgnetteError(f"image_id {image_id!r} is not among the images", hint="add the image")
    image, *others = images[image_id]
    if others:
        files = " and ".join(repr(item.get("file_name")) for item in (image, others[0]))
        message = f"image_id {image_id!r} stands for several images: {files}"
        raise LorgnetteError(message, hint="give each image an id of its own, and correct the annotations")
    unread_keys = fields.join_keys(
        fields.check_row_keys(record, ("id", "image_id", "caption"), marks=fields.TABLE_MARKS),
        fields.list_unread_keys(image, _IMAGE_KEYS, owner=f"image {image_id}", prefix="images[]."),
    )
    resolved = location.resolve_image(image.get("file_name"), f"the file_name of image {image_id}")
    id_, caption = fields.read_id(record, location.id), record.get("caption")
    return captions.build_examples(resolved, caption, location, name="'caption'", id_=id_, unread_keys=unread_keys)


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
    unread_keys = fields.check_row_keys(record, _KARPATHY_KEYS, marks=fields.TABLE_MARKS)
    sentences = fields.require_objects(record.get("sentences"), "sentences")
    for sentence in sentences:
        more = fields.list_unread_keys(sentence, _SENTENCE_KEYS, owner="a sentence", prefix="sentences[].")
        unread_keys = fields.join_keys(unread_keys, more)
    resolved = location.resolve_image(f"{folder}/{name}" if folder else name, "'filename'")
    texts = [fields.require_string(sentence.get("raw"), "'raw'") for sentence in sentences]
    id_ = next((record[key] for key in ("cocoid", "imgid") if isinstance(record.get(key), int)), location.id)
    return captions.build_examples(resolved, texts, location, name="sentences", id_=str(id_), unread_keys=unread_keys)


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
    if isinstance(value, BrokenRow):
        raise LorgnetteError(f"{name}: {value.message}", hint="remove one of the two")
    if not isinstance(value, dict):
        raise LorgnetteError(f"{name} is {describe_type(value)}, not an object", hint="correct or remove it")
    return value
