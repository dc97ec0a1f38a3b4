"""COCO's captions_*.json and Karpathy's dataset_coco.json → captions; COCO's instances_*.json → boxes. Read only.

    {"images": [{"id": 9, "file_name": "000000000009.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "…"}]}
    {"images": […], "annotations": [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [x, y, width, height]}],
     "categories": [{"id": 3, "name": "car"}]}
    {"images": [{"filepath": "val2014", "filename": "COCO_….jpg", "split": "test", "sentences": [{"raw": "…"}]}]}

Each caption becomes an example; a row is an annotation in COCO's file of captions, an image in Karpathy's. In a file of
boxes a row is an image, and the answer is all its boxes in the file's order. Annotations of crowds, which have one box
for many objects, and images without other boxes are left out. The images are found beside the file.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.config import BOX_PROMPT, DEFAULT_PROMPT
from lorgnette.data import fields
from lorgnette.data.box_notation import is_list_of_numbers
from lorgnette.data.formats import captions
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation
from lorgnette.data.text_files import BrokenRow, describe_type
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Box, BoxSource, Example, Turn

_IMAGE_FOLDERS = ("train2017", "val2017", "test2017", "train2014", "val2014", "test2014")
_IMAGE_KEYS = ("id", "file_name", "width", "height", "license", "date_captured", "coco_url", "flickr_url")
"""What COCO writes of an image; its source is not needed."""
_INSTANCE_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "attributes")
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
    counter = RowCounter(path, options.require_no_name(path), *_find_image_folders(options.source or path))
    annotations, items = _require_list(value, "annotations", path), _require_list(value, "images", path)
    if annotations and not any(isinstance(item, dict) and "caption" in item for item in annotations):
        if not any(isinstance(item, dict) and "bbox" in item for item in annotations):
            hint = "use the file of captions or of boxes: captions_train2017.json, instances_train2017.json"
            raise LorgnetteError("the annotations have no captions and no boxes", where=str(path), hint=hint)
        yield from _read_instances(annotations, items, _map_categories(value, path), counter, options)
        return
    images = _map_images(items)
    for annotation in annotations:
        location = counter.next()
        yield from location.try_read(partial(_read_annotation, annotation, images, location))


def _map_images(items: Sequence[object]) -> dict[int | str, list[Mapping[str, Any]]]:
    """Image id → its image: several if the file gives one id to several files."""
    images: dict[int | str, list[Mapping[str, Any]]] = {}
    for item in items:
        if isinstance(item, dict) and (key := _read_key(item)) is not None:
            known = images.setdefault(key, [])
            if all(image.get("file_name") != item.get("file_name") for image in known):
                known.append(item)
    return images


def _require_one(images: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The only image of an id."""
    image, *others = images
    if others:
        files = " and ".join(repr(item.get("file_name")) for item in (image, others[0]))
        message = f"image_id {image['id']!r} stands for several images: {files}"
        raise LorgnetteError(message, hint="give each image an id of its own, and correct the annotations")
    return image


def _read_annotation(
    annotation: object, images: Mapping[int | str, Sequence[Mapping[str, Any]]], location: RowLocation
) -> list[Example]:
    record = _require_object(annotation, "the annotation")
    image_id = record.get("image_id")
    if not isinstance(image_id, int | str) or image_id not in images:
        raise LorgnetteError(f"image_id {image_id!r} is not among the images", hint="add the image")
    image = _require_one(images[image_id])
    unread_keys = fields.join_keys(
        fields.check_row_keys(record, ("id", "image_id", "caption"), marks=fields.TABLE_MARKS),
        fields.list_unread_keys(image, _IMAGE_KEYS, owner=f"image {image_id}", prefix="images[]."),
    )
    resolved = location.resolve_image(image.get("file_name"), f"the file_name of image {image_id}")
    id_, caption = fields.read_id(record, location.id), record.get("caption")
    return captions.build_examples(resolved, caption, location, name="'caption'", id_=id_, unread_keys=unread_keys)


def _map_categories(value: Mapping[str, Any], path: Path) -> dict[int | str, str]:
    """Category id → name."""
    names: dict[int | str, str] = {}
    for number, category in enumerate(_require_list(value, "categories", path), start=1):
        id_, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if not isinstance(id_, int | str) or not isinstance(name, str) or not name.strip():
            hint = 'write each as {"id": 1, "name": "car"}'
            raise LorgnetteError(f"category {number} has no id or no name", where=str(path), hint=hint)
        name = fields.require_string(name, f"the name of category {id_!r}").strip()
        if names.setdefault(id_, name) != name:
            message = f"category {id_!r} has several names: {names[id_]!r} and {name!r}"
            hint = "give each category an id of its own, and correct the annotations"
            raise LorgnetteError(message, where=str(path), hint=hint)
    return names


def _read_instances(
    annotations: Sequence[object],
    images: Sequence[object],
    categories: Mapping[int | str, str],
    counter: RowCounter,
    options: ReadOptions,
) -> Iterator[Row]:
    """One row per image that has a box, in the order of the images. Says what is left out."""
    known = _map_images(images)
    by_image, crowds, turned = _group_annotations(annotations, known, counter.source)
    _report_unread(images, by_image, crowds, turned, counter.source.name, options)
    for image in images:
        location = counter.next()
        of_id: Sequence[object] = [image]  # if it is no image: a problem
        if isinstance(image, dict):
            of_id = known[key] if (key := _read_key(image)) in by_image else []
        if any(image is each for each in of_id):  # the same file twice is read once
            yield from location.try_read(partial(_read_boxes, of_id, by_image, categories, location))


def _group_annotations(
    annotations: Sequence[object], known: Mapping[int | str, object], source: Path
) -> tuple[dict[int | str, list[Mapping[str, Any]]], list[object], list[object]]:
    """(image id → its annotations, the ids of crowds, the ids of turned boxes). known: the images by id."""
    by_image: dict[int | str, list[Mapping[str, Any]]] = {}
    crowds: list[object] = []
    turned: list[object] = []
    for number, annotation in enumerate(annotations, start=1):
        record = _require_object(annotation, f"annotation {number}", source)
        image_id = record.get("image_id")
        if not isinstance(image_id, int | str) or image_id not in known:
            message = f"annotation {record.get('id', number)} has image_id {image_id!r}, which is not among the images"
            raise LorgnetteError(message, where=str(source), hint="add the image, or remove the annotation")
        if (is_crowd := record.get("iscrowd")) not in (None, 0, 1):
            message = f"annotation {record.get('id', number)} has iscrowd {is_crowd!r}, which is not 0 or 1"
            raise LorgnetteError(message, where=str(source), hint="correct it")
        if is_crowd:
            crowds.append(record.get("id", number))
        else:
            by_image.setdefault(image_id, []).append(record)
            attributes = record.get("attributes")  # CVAT's
            if isinstance(attributes, dict) and attributes.get("rotation"):
                turned.append(record.get("id", number))
    return by_image, crowds, turned


def _report_unread(
    images: Sequence[object],
    by_image: Collection[int | str],
    crowds: Sequence[object],
    turned: Sequence[object],
    name: str,
    options: ReadOptions,
) -> None:
    """Say what of the file is not read: crowds, images without boxes, rotations. crowds, turned: ids."""
    num_empty = sum(isinstance(image, dict) and _read_key(image) not in by_image for image in images)
    if crowds or num_empty:
        left_out = [f"annotations of crowds ({_list_ids(crowds)})"] if crowds else []
        left_out += [f"images without other boxes ({num_empty})"] if num_empty else []
        options.on_columns(f"{name}: {' and '.join(left_out)} are left out")
    if turned:
        options.on_columns(f"{name}: annotations with a 'rotation' ({_list_ids(turned)}) are read as upright boxes")


def _list_ids(ids: Sequence[object]) -> str:
    return f"{len(ids)}: id {', '.join(map(str, ids[:3]))}{' …' if len(ids) > 3 else ''}"


def _read_key(item: Mapping[str, Any]) -> int | str | None:
    """An image's id; None if it has none that an annotation can name."""
    key = item.get("id")
    return key if isinstance(key, int | str) else None


def _read_boxes(
    images: Sequence[object],
    by_image: Mapping[int | str, Sequence[Mapping[str, Any]]],
    categories: Mapping[int | str, str],
    location: RowLocation,
) -> list[Example]:
    record = _require_one([_require_object(image, "the image") for image in images])
    image_id = record["id"]
    unread_keys = fields.list_unread_keys(record, _IMAGE_KEYS, owner=f"image {image_id}", prefix="images[].")
    resolved = location.resolve_image(record.get("file_name"), f"the file_name of image {image_id}")
    resolved = replace(resolved, size=_read_size(record))
    boxes: list[Box] = []
    for annotation in by_image[image_id]:
        short = f"annotation {annotation.get('id', len(boxes) + 1)}"
        name = f"{short} of image {image_id}"
        category, bbox = annotation.get("category_id"), annotation.get("bbox")
        if not isinstance(category, int | str) or category not in categories:
            message = f"{name} has category_id {category!r}, which is not among the categories"
            raise LorgnetteError(message, hint="add the category, or remove the annotation")
        if not is_list_of_numbers(bbox, 4):
            message = f"the bbox of {name} is not a list of four numbers"
            raise LorgnetteError(message, hint="write it as [x, y, width, height]")
        x, y, width, height = numbers = tuple(map(float, annotation["bbox"]))
        source = BoxSource(short, numbers, "x, y, width, height", "pixels of the stored image")
        boxes.append(Box((x, y, x + width, y + height), categories[category], source=source))
        more = fields.list_unread_keys(annotation, _INSTANCE_KEYS, owner=name, prefix="annotations[].")
        unread_keys = fields.join_keys(unread_keys, more)
    prompt = BOX_PROMPT if location.prompt == DEFAULT_PROMPT else location.prompt
    turns = Turn("user", (resolved, prompt) if prompt else (resolved,)), Turn("assistant", tuple(boxes))
    return [Example(str(image_id), turns, location.source, location.row, unread_keys)]


def _read_size(record: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that the boxes of an image count; None if it has none."""
    size = record.get("width") or 0, record.get("height") or 0
    if not is_list_of_numbers(list(size), 2):
        message = f"the width and height of image {record['id']!r} are {size[0]!r} and {size[1]!r}, not numbers"
        raise LorgnetteError(message, hint="correct or remove them")
    width, height = size
    return (width, height) if width and height else None


def read_karpathy(value: Mapping[str, Any], path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row per image. options.name selects splits, joined by "+": "train+restval"."""
    images = _require_list(value, "images", path)
    splits = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
    wanted = set(options.name.split("+")) if options.name is not None else set(splits)
    if missing := wanted - set(splits):
        message = f"no split {', '.join(sorted(missing))!r}"
        raise UsageError(message, where=str(path), hint=f"set name to one of {', '.join(splits)}")
    counter = RowCounter(path, options, *_find_image_folders(options.source or path))
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
    """The usual folders of the images: the file's own and the one above it, images/ in both, and COCO's folders there.

    COCO's archive of annotations unpacks into annotations/ beside the image folders. CVAT writes
    annotations/instances_default.json beside images/default/: the file's name ends with that of the folder.
    """
    own = Path(os.path.abspath(path)).parent
    parents = (own, own / "images", own.parent, own.parent / "images")
    names = (path.stem.rpartition("_")[2], *_IMAGE_FOLDERS)
    folders = (own, *(parent / names[0] for parent in parents), *parents)
    folders = (*folders, *(parent / name for parent in parents for name in names))
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _require_list(value: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    items = value.get(key)
    if not isinstance(items, list):
        raise LorgnetteError(f"{key!r} is {describe_type(items)}, not a list", where=str(path), hint="correct the file")
    return items


def _require_object(value: object, name: str, path: Path | None = None) -> Mapping[str, Any]:
    """path: the file, for an error that is about all of it."""
    where = str(path) if path else None
    if isinstance(value, BrokenRow):
        raise LorgnetteError(f"{name}: {value.message}", where=where, hint="remove one of the two")
    if not isinstance(value, dict):
        message = f"{name} is {describe_type(value)}, not an object"
        raise LorgnetteError(message, where=where, hint="correct or remove it")
    return value
