"""A data file or folder of any format → its examples, one by one; a folder of images → prompts.

Every row of the source comes out, as an Example or as a Problem; only empty lines are not rows. A JSON is read
completely, all other formats row by row. `formats` interprets the rows.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from lorgnette.config import DEFAULT_PROMPT
from lorgnette.data.box_notation import TextBoxUnit, split_text_boxes
from lorgnette.data.conversation import check_conversation
from lorgnette.data.downloaded_folders import hold_download
from lorgnette.data.formats import FILE_FORMATS, folder
from lorgnette.data.images import IMAGE_SUFFIXES, verify_image
from lorgnette.data.row_location import (
    RECOGNIZED,
    ColumnChoice,
    PendingRow,
    ReadOptions,
    Row,
    RowLocation,
    RowStream,
    sample_rows,
)
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.folder_kind import find_folder_kind
from lorgnette.io.paths import split_sources, suggest_path
from lorgnette.types import Example, Image, Problem, Turn

_SUPPORTED_FORMATS = (
    ".csv, .tsv or .xlsx (image_path,caption), .json or .jsonl (items with 'conversations' or 'messages', COCO's "
    "annotations, dataset_info.json), .parquet, .tar (WebDataset), a .zip of a text file of these, or a folder of "
    "images with metadata.csv or .txt files"
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
    trim: bool = True,
    columns: ColumnChoice = RECOGNIZED,
    on_columns: Callable[[str], None] = lambda text: None,
    text_boxes: TextBoxUnit | None = None,
) -> Iterator[Row]:
    """The rows of a data file or folder, or of several with commas between them, one after the other.

    prompt: the user's text if the format has none (captions).
    max_rows: the first N examples; sample: N of these, drawn fairly by `seed`, in the source's order.
    name: the part of a source that has several: an entry of dataset_info.json, a split of dataset_coco.json.
    images_from: a folder or zip that is searched for images first, by the path as written, then by the file name.
    images_to: the folder for images inside the source or a zip; default: `<file>.images` beside it.
    trim: remove blanks around captions and the questions beside them; False: keep them. Conversations keep theirs.
    columns: those of a table with images and captions. on_columns: is told what was understood of a table's columns,
    separator and encoding, unless these are our own, and of what COCO's boxes leave out.
    text_boxes: what the numbers of boxes in texts count, which become boxes; None: texts stay as written.

    Raises UsageError or LorgnetteError if the file cannot be read at all.
    """
    for name_of_count, count in (("max_rows", max_rows), ("sample", sample)):
        if count is not None and count < 1:
            raise UsageError(f"{name_of_count} is {count}", hint="ask for at least one row, or leave it out for all")
    options = ReadOptions(prompt, name, images_from, images_to, seed, columns, trim=trim, on_columns=on_columns)
    stream = RowStream([_read_source(source, options) for source in _open_sources(path)], max_rows)
    rows: Iterator[Row] = stream
    if text_boxes is not None:
        rows = chain.from_iterable(_split_boxes(row, text_boxes) for row in rows)
    return rows if sample is None else _sample_lazily(rows, sample, seed)


def _split_boxes(row: Row, unit: TextBoxUnit) -> Iterable[Row]:
    """The row with the boxes in its texts, or its problem."""
    if isinstance(row, Problem):
        return [row]
    return RowLocation.from_example(row).try_read(lambda: [split_text_boxes(row, unit)])


def _open_sources(path: Path) -> list[Path]:
    """The absolute paths of the sources that a path names. A downloaded data set is not cleared while this process
    runs. Raises LorgnetteError if a source does not exist."""
    sources = [Path(os.path.abspath(source)) for source in split_sources(path)]
    for source in sources:
        _check_exists(source)
        hold_download(source)
    return sources


def _read_source(path: Path, options: ReadOptions) -> Iterator[PendingRow | Row]:
    if path.is_dir():
        _check_is_data(path)
        return folder.read_folder(path, options)
    read_rows = FILE_FORMATS.get(path.suffix.lower())
    if read_rows is None:
        message = f"data files of type {path.suffix.lower() or '(none)'!r} cannot be read"
        raise UsageError(message, where=str(path), hint=f"give {_SUPPORTED_FORMATS}")
    return read_rows(path, options)


def _sample_lazily(rows: Iterator[Row], sample: int, seed: int) -> Iterator[Row]:
    yield from sample_rows(rows, sample, seed)


def is_dataset(path: Path) -> bool:
    """True if `read` reads it: a data file, or a folder that describes its images.

    Anything else is an image or a folder of bare images, for `read_images`.
    """
    return any(
        folder.is_dataset(source) if source.is_dir() else source.suffix.lower() in FILE_FORMATS
        for source in _open_sources(path)
    )


def read_images(path: Path, *, prompt: str = DEFAULT_PROMPT) -> Iterator[Row]:
    """An image, or the images directly in a folder by name, each with the prompt and without an answer.

    Files with other suffixes and hidden ones (.DS_Store, ._a.jpg) are ignored. `row` is the position in that order.
    """
    return chain.from_iterable([_read_image_source(source, prompt) for source in _open_sources(path)])


def _read_image_source(path: Path, prompt: str) -> Iterator[Row]:
    if not path.is_dir():
        return _read_prompts([path], path, prompt)
    images = sorted(
        file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not images:
        _check_is_data(path)
        raise LorgnetteError("no image in this folder", where=str(path), hint="name a folder of JPEGs or PNGs")
    return _read_prompts(images, path, prompt)


def _read_prompts(files: list[Path], source: Path, prompt: str) -> Iterator[Row]:
    for row, file in enumerate(files, start=1):
        turns = (Turn("user", (Image(file), prompt) if prompt else (Image(file),)),)
        try:
            check_conversation(turns, needs_answer=False)
            verify_image(file)
        except LorgnetteError as error:
            yield RowLocation(source, row, row).to_problem(error)
            continue
        yield Example(file.name, turns, source, row)


def _check_exists(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        message = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be reached: {error}"
        raise LorgnetteError(message, where=str(path), hint=suggest_path(path, "correct the path")) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe or a device may never end
        raise LorgnetteError("not a file or a folder", where=str(path), hint="save the data into a file")


def _check_is_data(path: Path) -> None:
    """Raise UsageError for a folder that is something else, such as an adapter."""
    kind = find_folder_kind(path).removeprefix("pickled ")
    if kind in ("model", "adapter", "run") and not folder.is_dataset(path):
        message = f"{'an' if kind == 'adapter' else 'a'} {kind}, not data"
        raise UsageError(message, where=str(path), hint="name the data: a data file, or a folder with images")
