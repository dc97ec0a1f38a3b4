"""A source of any form → its examples, one by one; a folder of pictures → prompts.

Knows nothing about what the rows mean: the forms do. Every row of the source comes out, as an Example or as a Problem;
only empty lines are no rows. CSV, JSONL and tars are read row by row, JSON as a whole.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lorgnette.data import row_location
from lorgnette.data.formats import FILE_FORMATS, folder
from lorgnette.data.images import IMAGE_SUFFIXES, verify_image
from lorgnette.data.row_location import DEFAULT_PROMPT, Row, sample_rows
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Image, Turn

_SUPPORTED_FORMATS = (
    ".csv (image_path,caption), .json or .jsonl (items with 'conversations' or 'messages', COCO's annotations, "
    "dataset_info.json), .tar (WebDataset), or a folder of pictures with metadata.csv or .txt files"
)


def read(
    path: Path,
    *,
    prompt: str = DEFAULT_PROMPT,
    max_rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    name: str | None = None,
    images_from: Path | None = None,
    images_to: Path | None = None,
) -> Iterator[Row]:
    """The rows of a data file or folder.

    prompt: the user's text where the form has none (captions).
    rows: the first so many; sample: so many of these, drawn fairly by `seed`, in the source's order.
    name: the part of a source that has several: an entry of dataset_info.json, a split of dataset_coco.json.
    images_from: a folder or zip in which pictures are looked up first, by path as written, then by file name.
    pictures_to: where pictures that lie inside the source or a zip are laid down; else a folder beside it,
    `<file>.pictures`.
    """
    for what, count in (("rows", max_rows), ("sample", sample)):
        if count is not None and count < 1:
            raise UsageError(f"{what} is {count}", hint=f"ask for at least one row, or leave {what} out for all")
    path = Path(os.path.abspath(path))
    _check_exists(path)
    asked = row_location.ReadOptions(prompt, name, images_from, images_to, seed)
    found = islice(_read_rows(path, asked), max_rows)
    return found if sample is None else _sample_lazily(found, sample, seed)


def _sample_lazily(rows: Iterator[Row], sample: int, seed: int) -> Iterator[Row]:
    yield from sample_rows(rows, sample, seed)


def _read_rows(path: Path, options: row_location.ReadOptions) -> Iterator[Row]:
    if path.is_dir():
        return folder.read_folder(path, options)
    form = FILE_FORMATS.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"data files of type {path.suffix.lower() or '(none)'!r} cannot be read",
            where=str(path),
            hint=f"give {_SUPPORTED_FORMATS}",
        )
    return form(path, options)


def is_dataset(path: Path) -> bool:
    """Whether `read` is the way to read it: a data file, or a folder that says what its pictures show. Anything else is
    a picture or a folder of bare pictures, for `pictures_of`."""
    _check_exists(path)
    return folder.is_dataset(path) if path.is_dir() else path.suffix.lower() in FILE_FORMATS


def read_images(path: Path, *, prompt: str = DEFAULT_PROMPT) -> Iterator[Row]:
    """A picture, or the pictures right in a folder by name: each with the prompt, and no answer yet.

    Files of other suffixes and hidden ones (.DS_Store, ._a.jpg) are no pictures. `row` is the place in that order.
    """
    path = Path(os.path.abspath(path))
    _check_exists(path)
    if not path.is_dir():
        return _read_prompts([path], path, prompt)
    found = sorted(
        file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not found:
        raise LorgnetteError("no picture in this folder", where=str(path), hint="name a folder of JPEGs or PNGs")
    return _read_prompts(found, path, prompt)


def _read_prompts(files: list[Path], source: Path, prompt: str) -> Iterator[Row]:
    for row, file in enumerate(files, start=1):
        try:
            verify_image(file)
        except LorgnetteError as error:
            yield row_location.RowLocation(source, row, row).to_problem(error)
            continue
        picture = Image(file)
        yield Example(file.name, (Turn("user", (picture, prompt) if prompt else (picture,)),), source, row)


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        said = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be reached: {error}"
        raise LorgnetteError(said, where=str(path), hint="correct the path") from error
