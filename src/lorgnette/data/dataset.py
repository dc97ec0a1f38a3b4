"""A source of any form → its examples, one by one; a folder of pictures → prompts.

Knows nothing about what the rows mean: the forms do. Every row of the source comes out, as an Example or as a Problem;
only empty lines are no rows. CSV, JSONL and tars are read row by row, JSON as a whole.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lorgnette.data import rows
from lorgnette.data.formats import FILES, folder
from lorgnette.data.images import SUFFIXES, verified
from lorgnette.data.rows import PROMPT, Row
from lorgnette.data.sample import sampled
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Picture, Turn

_SUPPORTED = (
    ".csv (image_path,caption), .json or .jsonl (items with 'conversations' or 'messages', COCO's annotations, "
    "dataset_info.json), .tar (WebDataset), or a folder of pictures with metadata.csv or .txt files"
)


def read(
    path: Path,
    *,
    prompt: str = PROMPT,
    rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    name: str | None = None,
    images_from: Path | None = None,
    pictures_to: Path | None = None,
) -> Iterator[Row]:
    """The rows of a data file or folder.

    prompt: the user's text where the form has none (captions).
    rows: the first so many; sample: so many of these, drawn fairly by `seed`, in the source's order.
    name: the part of a source that has several: an entry of dataset_info.json, a split of dataset_coco.json.
    images_from: a folder or zip in which pictures are looked up first, by path as written, then by file name.
    pictures_to: where pictures that lie inside the source or a zip are laid down; else a folder beside it,
    `<file>.pictures`.
    """
    for what, count in (("rows", rows), ("sample", sample)):
        if count is not None and count < 1:
            raise UsageError(f"{what} is {count}", remedy=f"ask for at least one row, or leave {what} out for all")
    path = Path(os.path.abspath(path))
    _must_be_there(path)
    asked = rows.Asked(prompt, name, images_from, pictures_to, seed)
    found = islice(_opened(path, asked), rows)
    return found if sample is None else _drawn(found, sample, seed)


def _drawn(rows: Iterator[Row], sample: int, seed: int) -> Iterator[Row]:
    yield from sampled(rows, sample, seed)


def _opened(path: Path, asked: rows.Asked) -> Iterator[Row]:
    if path.is_dir():
        return folder.examples(path, asked)
    form = FILES.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"data files of type {path.suffix.lower() or '(none)'!r} cannot be read",
            where=str(path),
            remedy=f"give {_SUPPORTED}",
        )
    return form(path, asked)


def speaks(path: Path) -> bool:
    """Whether `read` is the way to read it: a data file, or a folder that says what its pictures show. Anything else is
    a picture or a folder of bare pictures, for `pictures_of`."""
    _must_be_there(path)
    return folder.speaks(path) if path.is_dir() else path.suffix.lower() in FILES


def pictures_of(path: Path, *, prompt: str = PROMPT) -> Iterator[Row]:
    """A picture, or the pictures right in a folder by name: each with the prompt, and no answer yet.

    Files of other suffixes and hidden ones (.DS_Store, ._a.jpg) are no pictures. `row` is the place in that order.
    """
    path = Path(os.path.abspath(path))
    _must_be_there(path)
    if not path.is_dir():
        return _prompts([path], path, prompt)
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    if not found:
        raise LorgnetteError("no picture in this folder", where=str(path), remedy="name a folder of JPEGs or PNGs")
    return _prompts(found, path, prompt)


def _prompts(files: list[Path], source: Path, prompt: str) -> Iterator[Row]:
    for row, file in enumerate(files, start=1):
        try:
            verified(file)
        except LorgnetteError as error:
            yield rows.Place(source, row, row).problem(error)
            continue
        picture = Picture(file)
        yield Example(file.name, (Turn("user", (picture, prompt) if prompt else (picture,)),), source, row)


def _must_be_there(path: Path) -> None:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        said = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be reached: {error}"
        raise LorgnetteError(said, where=str(path), remedy="correct the path") from error
