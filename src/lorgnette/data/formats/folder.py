"""A folder: images with a metadata.csv or .jsonl, images with one .txt each, class folders, or shards. Read only.

    metadata.csv: file_name,caption    ·    0001.jpg + 0001.txt    ·    train-000000.tar, … or train-00000.parquet, …

In a folder of images and texts every file is a row, by name. A text without its image is a Problem, and so is an image
without its text.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from lorgnette.data.formats import captions, csv, json_records, parquet, webdataset
from lorgnette.data.formats.class_folders import is_class_folder, read_class_folders
from lorgnette.data.formats.records import RecordReader
from lorgnette.data.images import IMAGE_SUFFIXES
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation
from lorgnette.data.text_files import decode_text
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_SHARD_FORMATS = {".tar": webdataset.read_webdataset, ".parquet": parquet.read_parquet}
_TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl")
_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev)(?=[^a-z])")


def read_folder(path: Path, options: ReadOptions) -> Iterator[Row]:
    """The files directly in the folder tell its format; hidden ones are ignored."""
    options = options.require_no_name(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    metadata = [file for file in files if file.name in _METADATA_FILES]
    if len(metadata) > 1:
        raise UsageError("both metadata.csv and metadata.jsonl", where=str(path), hint="name one of the two files")
    shards = [file for file in files if file.suffix.lower() in _SHARD_FORMATS]
    if metadata and shards:
        message = f"both {metadata[0].name} and shards ({shards[0].name})"
        raise UsageError(message, where=str(path), hint="name one of the files")
    if metadata and metadata[0].suffix == ".csv":
        return csv.read_csv(metadata[0], options)
    if metadata:
        counter = RowCounter(metadata[0], options)
        return json_records.read_records(metadata[0], counter, RecordReader(options, str(metadata[0])))
    if shards:
        _check_shards(shards, path)
        return (row for shard in shards for row in _SHARD_FORMATS[shard.suffix.lower()](shard, options))
    if is_class_folder(path):
        return read_class_folders(path, options.require_no_columns(path))
    images, texts = _find_images_and_texts(files)
    if not _has_pairs(images, texts):
        message = "a folder, not a data file, and no file in it describes its images"
        raise UsageError(message, where=str(path), hint=_suggest_source(path))
    return _read_pairs(path, images, texts, options.require_no_columns(path))


def _check_shards(shards: Sequence[Path], path: Path) -> None:
    """Raise UsageError if the shards are not of one data set: of two formats, or of two splits (train-…, test-…)."""
    for kind, names in (
        ("formats", {shard.suffix.lower() for shard in shards}),
        ("splits", {match[0] for shard in shards if (match := _SPLIT_NAME.match(shard.name.lower()))}),
    ):
        if len(names) > 1:
            message = f"the folder holds shards of several {kind}: {', '.join(sorted(names))}"
            hint = f"name one file ({shards[0].name}), or move the others to a folder of their own"
            raise UsageError(message, where=str(path), hint=hint)


def _suggest_source(path: Path) -> str:
    """The data in the folder or one level below, else what to add."""
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir() and os.access(child, os.R_OK))]
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    sources = [file.parent for file in files if file.suffix.lower() in _SHARD_FORMATS or file.name in _METADATA_FILES]
    sources += [folder for folder in folders if is_class_folder(folder)]
    sources = list(dict.fromkeys(sources)) or [file for file in files if file.suffix.lower() in _TABLE_SUFFIXES]
    if not sources:
        return (
            "add metadata.csv (file_name,caption) or a .txt for each image, put the images of each class into a folder "
            "of its own (cats/1.jpg, dogs/1.jpg), or name a data file"
        )
    return f"name the data in it: {' or '.join(map(str, sources[:3]))}"


def is_dataset(path: Path) -> bool:
    """True if a file in the folder describes its images; False for a folder of bare images."""
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    is_described = any(file.name in _METADATA_FILES or file.suffix.lower() in _SHARD_FORMATS for file in files)
    return is_described or _has_pairs(*_find_images_and_texts(files)) or is_class_folder(path)


def _find_images_and_texts(files: list[Path]) -> tuple[set[Path], dict[Path, Path]]:
    images = {file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    return images, {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}


def _has_pairs(images: set[Path], texts: dict[Path, Path]) -> bool:
    return any(image.with_suffix("") in texts for image in images)


def _read_pairs(path: Path, images: set[Path], texts: dict[Path, Path], options: ReadOptions) -> Iterator[Row]:
    counter = RowCounter(path, options)
    image_stems = {image.with_suffix("") for image in images}
    for file in sorted(images | {text for stem, text in texts.items() if stem not in image_stems}):
        location = counter.next()
        yield from location.try_read(partial(_read_pair, file, texts.get(file.with_suffix("")), location))


def _read_pair(file: Path, text: Path | None, location: RowLocation) -> list[Example]:
    if text is None:
        raise LorgnetteError(f"{file.name} has no text", hint=f"write {file.stem}.txt, or remove the image")
    if text == file:
        raise LorgnetteError(f"{file.name} has no image", hint="add it, or move the text elsewhere")
    try:
        caption = captions.strip_line_end(decode_text(text.read_bytes(), text.name))
    except OSError as error:
        raise LorgnetteError(f"{text.name} cannot be read: {error.strerror}", hint="check the file") from error
    image = location.resolve_image(str(file), "the image")
    return captions.build_examples(image, caption, location, name="the text", id_=file.name)
