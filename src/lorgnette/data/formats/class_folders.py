"""A folder of class folders: `cats/1.jpg`, `dogs/1.jpg`. The answer to an image is the name of its folder. Read only.

The classes are mixed in proportion, each in the order of its files' names: so the first rows, and those that are held
out from the end, have all classes as the whole has them.
"""

import os
import re
import unicodedata
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lorgnette.data.formats import captions
from lorgnette.data.images import IMAGE_SUFFIXES
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_NO_CLASS = re.compile(
    r"train(ing)?|test(ing)?|val(id|idation)?|dev|eval|images?|imgs?|pictures?|photos?|pics?|masks?|labels?|"
    r"annotations?|__macosx",
    re.IGNORECASE,
)
"""Names of folders that are the parts of a data set, not classes."""
_DESCRIPTIONS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".tar")


def is_class_folder(path: Path) -> bool:
    """Whether a folder holds class folders: two or more with images that nothing describes, and no files with data.

    Folders with the names of a data set's parts (train, test, images, …) are no classes.
    """
    folders = _list_folders(path)
    if len(folders) < 2 or any(_NO_CLASS.fullmatch(folder.name) for folder in folders):
        return False
    if any(file.suffix.lower() in (*IMAGE_SUFFIXES, *_DESCRIPTIONS) for file in _list_files(path)):
        return False
    classes = [folder for folder in folders if _list_images(folder)]
    return len(classes) > 1 and not any(map(_is_described, classes))


def read_class_folders(path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row for each image. A folder without images is a Problem, and so is a folder inside a class."""
    counter, rows = RowCounter(path, options), list[tuple[float, Path]]()
    for folder in _list_folders(path):
        inner = [child for child in _list_folders(folder)]
        images = _list_images(folder)
        for child in inner or ([folder] if not images else []):
            rows.append((0.0, child))
        rows += [((i + 0.5) / len(images), image) for i, image in enumerate(images)]
    for _, file in sorted(rows):
        location = counter.next()
        yield from location.try_read(partial(_read_image, path, file, location))


def _read_image(top: Path, file: Path, location: RowLocation) -> list[Example]:
    name = str(file.relative_to(top))
    if file.is_dir():
        if file.parent == top:
            raise LorgnetteError(f"the folder {name} has no image", hint="add images, or move it elsewhere")
        message = f"{name} is a folder inside the folder of a class"
        raise LorgnetteError(message, hint="move its images up, or make it a class of its own")
    label = unicodedata.normalize("NFC", file.parent.name)  # macOS writes é as two characters
    image = location.resolve_image(str(file), "the image")
    return captions.build_examples(image, label, location, name="the folder's name", id_=name)


def _list_folders(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _list_files(path: Path) -> list[Path]:
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_file() and not entry.name.startswith("."))


def _list_images(folder: Path) -> list[Path]:
    return [file for file in _list_files(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def _is_described(folder: Path) -> bool:
    """Whether it has captions of its own: a text for an image, or a table."""
    files = _list_files(folder)
    stems = {file.stem for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    return any(
        file.suffix.lower() in _DESCRIPTIONS and (file.suffix.lower() != ".txt" or file.stem in stems) for file in files
    )
