"""COCO's captions_*.json and Karpathy's dataset_coco.json → captions, the pictures found beside the file.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "…"}]}
    {"images": [{"filepath": "val2014", "filename": "COCO_….jpg", "split": "test", "sentences": [{"raw": "…"}]}]}

A caption is an example; COCO's rows are its annotations, Karpathy's rows its images. Read only.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorgnette.data import rows
from lorgnette.data.formats import captions
from lorgnette.data.text_files import kind
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_PARTS = ("train2017", "val2017", "test2017", "train2014", "val2014", "test2014")


def is_official(value: Mapping[str, Any]) -> bool:
    return "images" in value and "annotations" in value


def is_karpathy(value: Mapping[str, Any]) -> bool:
    images = value.get("images")
    return isinstance(images, list) and bool(images) and isinstance(images[0], dict) and "sentences" in images[0]


def official(value: Mapping[str, Any], path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    """One row an annotation, in the file's order, so that a picture's captions need not stand together."""
    places = rows.places(path, asked.unnamed(path), *_folders(path))
    annotations = _list(value, "annotations", path)
    if annotations and not any(isinstance(each, dict) and "caption" in each for each in annotations):
        raise LorgnetteError(
            "the annotations hold no captions (boxes or key points?)",
            where=str(path),
            remedy="take the file of captions: captions_train2017.json",
        )
    names = {
        image["id"]: image.get("file_name")
        for image in _list(value, "images", path)
        if isinstance(image, dict) and isinstance(image.get("id"), int | str)
    }
    for annotation in annotations:
        yield from _annotation(annotation, names, places.next())


def _annotation(annotation: object, names: Mapping[int | str, object], place: rows.Place) -> Iterator[rows.Row]:
    def examples() -> list[Example]:
        record = _dict(annotation, "the annotation")
        shown = record.get("image_id")
        if not isinstance(shown, int | str) or shown not in names:
            raise LorgnetteError(
                f"image_id {shown!r} is not among the images", remedy="add the image, or remove the annotation"
            )
        picture = place.picture(names[shown], f"the file_name of image {shown}")
        return captions.described(
            picture, record.get("caption"), place, name="'caption'", id_=rows.identity(record, place)
        )

    return place.judged(examples)


def karpathy(value: Mapping[str, Any], path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    """One row an image. asked.name picks splits, joined by "+": "train+restval"."""
    images = _list(value, "images", path)
    splits = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
    wanted = set(asked.name.split("+")) if asked.name is not None else set(splits)
    if missing := wanted - set(splits):
        raise UsageError(
            f"no split {', '.join(sorted(missing))!r}", where=str(path), remedy=f"name of {', '.join(splits)}"
        )
    places = rows.places(path, asked, *_folders(path))
    for image in images:
        place = places.next()
        if not isinstance(image, dict) or str(image.get("split")) in wanted:
            yield from _image(image, place)


def _image(image: object, place: rows.Place) -> Iterator[rows.Row]:
    def examples() -> list[Example]:
        record = _dict(image, "the image")
        name = rows.string(record.get("filename"), "'filename'")
        folder = rows.string(record.get("filepath", ""), "'filepath'")
        picture = place.picture(f"{folder}/{name}" if folder else name, "'filename'")
        said = [each.get("raw") for each in rows.objects(record.get("sentences"), "sentences")]
        number = next((record[key] for key in ("cocoid", "imgid") if isinstance(record.get(key), int)), place.id)
        return captions.described(picture, said, place, name="sentences", id_=str(number))

    return place.judged(examples)


def _folders(path: Path) -> list[Path]:
    """Where the pictures usually are: beside the file, in images/, or in COCO's own folders there or one level up
    (its archive of annotations unpacks into annotations/ beside them)."""
    tops = (path.parent, path.parent / "images", path.parent.parent, path.parent.parent / "images")
    found = [folder for top in tops for folder in (top / part for part in _PARTS) if folder.is_dir()]
    return [folder for folder in (*tops[:2], *found) if folder.is_dir()]


def _list(value: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    listed = value.get(key)
    if not isinstance(listed, list):
        raise LorgnetteError(f"{key!r} is {kind(listed)}, not a list", where=str(path), remedy="get the file again")
    return listed


def _dict(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise LorgnetteError(f"{name} is {kind(value)}, not an object", remedy="correct or remove it")
    return value
