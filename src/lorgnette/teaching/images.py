"""The images that are taught: of a folder or a data file, checked by their headers, each content once.

Knows nothing about models and answers. IMAGES is only read.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lorgnette import data
from lorgnette.data.checks.near_duplicates import near_duplicate_groups
from lorgnette.data.conversation import check_conversation
from lorgnette.data.images import load_formats
from lorgnette.data.row_location import EMPTY_CAPTION, Row, RowLocation
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.folder_kind import find_folder_kind
from lorgnette.io.parse import is_unicode
from lorgnette.io.shell import format_command, quote_word
from lorgnette.report.manifest import hash_image
from lorgnette.types import Example, Image, Problem, Turn

_NUM_THREADS = 8
_BLOCK_SIZE = 128
"""Images that are compared before it is asked whether to stop."""
_MAX_LISTED = 3
_DIGITS = re.compile(r"(\d+)")


@dataclass
class ImageList:
    """N images. An image is known by its number, 0 … N−1.

    source: what the user named, from the root. folder: what names are relative to, from the root. names: posix paths.
    broken: number → what is wrong with its file, in words. copies: name of a file that is left out → number of the
    image with the same bytes. prompt: the question about all of them. alike: number → the first image that looks like
    it, for all but the first of each group; `find_look_alikes` fills it. remarks: what the user should know of the
    source.
    """

    source: Path
    folder: Path
    names: Sequence[str]
    paths: Sequence[Path]
    broken: Mapping[int, str]
    copies: Mapping[str, int]
    prompt: str
    alike: Mapping[int, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    _hashes: dict[int, str] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Name → number, also of copies."""
        return {**self.copies, **{name: number for number, name in enumerate(self.names)}}

    def hash_image(self, number: int) -> str:
        """The start of the file's SHA-256, as in a run's manifest. "" for a file that cannot be read."""
        if number not in self._hashes:
            try:
                if not self.paths[number].is_file():  # to open a pipe blocks for ever
                    return ""
                self._hashes[number] = hash_image(self.paths[number])
            except OSError:
                return ""
        return self._hashes[number]

    def find_number(self, path: Path) -> int | None:
        """The image at a path, however the path is written; None if it is not in the list."""
        return self._by_path.get(os.path.realpath(path))

    @cached_property
    def _by_path(self) -> Mapping[str, int]:
        copies = {os.path.realpath(self.folder / name): number for name, number in self.copies.items()}
        return copies | {os.path.realpath(path): number for number, path in enumerate(self.paths)}

    def find_look_alikes(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Fill `alike`, as `check` finds look-alikes. Decodes every image roughly, and takes seconds for a thousand.

        should_stop: is asked now and then; True leaves `alike` as it is.
        """
        numbers = [number for number in range(len(self)) if number not in self.broken]
        infos = dict[Path, data.ImageInfo]()
        for start in range(0, len(numbers), _BLOCK_SIZE):
            rows = [_build_row(self.paths[number], "?", number) for number in numbers[start : start + _BLOCK_SIZE]]
            infos |= data.scan(rows, with_signatures=True, needs_answer=False).image_infos
            if should_stop():
                return
        signatures = data.compute_full_signatures(infos, {path: path for path in infos})
        found = [number for number in numbers if self.paths[number] in signatures]
        groups = near_duplicate_groups([signatures[self.paths[number]] for number in found])
        self.alike = {found[index]: found[group[0]] for group in groups for index in group[1:]}


def read_images(source: Path, prompt: str, *, keeps_shape: bool = False) -> ImageList:
    """Find the images of a folder and the folders below, in the order that people count.

    source: the folder; an image; or a data file whose rows have one image each and no answer. prompt: the question if
    the data has none. keeps_shape: whether the model gets images in their own shape, which must not be too narrow then.
    Raises LorgnetteError where no image is found, and UsageError for data that cannot be taught.
    """
    remarks: list[str] = []
    shown, source = source, Path(os.path.abspath(source))
    if not source.is_dir() and source.exists() and not data.is_dataset(source):
        folder, paths = source.parent, [source]
    elif source.is_dir() and (paths := _list_folder(source)):
        folder = source
        if remark := _describe_captions(source):
            remarks.append(remark)
    elif source.is_dir() and not data.is_dataset(source):
        raise _build_empty_error(shown)
    else:
        folder, paths, prompt = _read_rows(source, prompt)
    firsts, copies = _leave_out_copies(paths)
    if copies:
        remarks.append(_describe_copies(copies, folder))
    names = [_name(path, folder) for path in firsts]
    first_numbers = {path: number for number, path in enumerate(firsts)}
    named_copies = {_name(path, folder): first_numbers[first] for path, first in copies.items()}
    broken = _find_broken(firsts, keeps_shape=keeps_shape)
    if len(broken) == len(firsts):
        where, hint = f"{names[0]}: {broken[0]}", "name a folder with images that an image viewer opens"
        raise LorgnetteError(f"none of {len(firsts)} images can be read", where=where, hint=hint)
    return ImageList(source, folder, names, firsts, broken, named_copies, prompt, remarks=remarks)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that sorts names as people count: image 2 comes before image 10."""
    parts = _DIGITS.split(name.casefold())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name


def _list_folder(folder: Path) -> list[Path]:
    """Every image file, without hidden files and folders, and without the folders of runs."""

    def refuse(error: OSError) -> None:
        message, hint = f"folder cannot be read: {error.strerror}", "change its permissions, or name another folder"
        raise LorgnetteError(message, where=str(error.filename), hint=hint)

    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        below = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in below if find_folder_kind(Path(root, name)) not in ("run", "model", "adapter")]
        images = (name for name in files if not name.startswith("."))
        found += [Path(root, name) for name in images if Path(name).suffix.lower() in data.IMAGE_SUFFIXES]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _build_empty_error(folder: Path) -> LorgnetteError:
    message = f"No images in {folder}/. JPEG, PNG, WebP, HEIC, TIFF, GIF, BMP and AVIF are looked for"
    kind = find_folder_kind(folder)
    if kind in ("run", "model", "adapter"):
        hint = "name the folder of the images"
        return UsageError(f"{'an' if kind == 'adapter' else 'a'} {kind}, not images", where=str(folder), hint=hint)
    return LorgnetteError(f"{message}, in folders below too.")


def _describe_captions(folder: Path) -> str:
    """That captions beside the images are not read, if there are some."""
    has_table = any((folder / name).is_file() for name in ("metadata.csv", "metadata.jsonl"))
    texts = {path.stem for path in folder.glob("*.txt")}
    if not has_table and not (texts and any(path.stem in texts for path in _list_folder(folder))):
        return ""
    return f"captions beside the images are not read; as answers given before: --captions {quote_word(folder)}"


def _read_rows(source: Path, prompt: str) -> tuple[Path, list[Path], str]:
    """Folder, images and question of a data file. Raises UsageError for rows with answers, for those with several
    images, and for several questions."""
    rows, problems = list[Example](), list[Problem]()
    for row in data.read(source, prompt=prompt):
        checked = _check_row(row, source, prompt)
        rows += [checked] if isinstance(checked, Example) else []
        problems += [checked] if isinstance(checked, Problem) else []
    if problems:
        refusal = data.build_refusal(problems, len(rows) + len(problems))
        raise LorgnetteError(refusal.message, hint="fix or remove these rows, and try again")
    if not rows:
        raise LorgnetteError("no row in this file", where=str(source), hint="name a folder of images, or another file")
    questions = dict.fromkeys(turn.text for row in rows for turn in row.turns[-1:])
    if len(questions) > 1 or any(len(row.turns) > 1 for row in rows):
        shown = ", ".join(repr(text) for text in list(questions)[:2])
        hint = "ask one question: name the folder of the images, and the question as --prompt"
        raise UsageError("the rows have several questions", where=f"{source}: {shown}", hint=hint)
    paths = list(dict.fromkeys(row.images[0].path for row in rows))
    parents = [source if source.is_dir() else source.parent, *(path.parent for path in paths)]
    folder = Path(os.path.commonpath([os.path.abspath(parent) for parent in parents]))
    return folder, paths, next(iter(questions))


def _check_row(row: Row, source: Path, prompt: str) -> Row:
    """The row, or its problem. An empty caption is none: it is what is asked for. A damaged image is none: it has its
    place on the page. Raises UsageError for a row that is no image with a question."""
    if isinstance(row, Problem):
        is_usable = row.fact == EMPTY_CAPTION and row.where
        return _build_row(Path(row.where), prompt, row.row) if is_usable else row
    if row.reference:
        command = format_command("teach", "IMAGES", "--captions", source)
        hint = f"name the folder of the images, and these as answers given before: {command}"
        raise UsageError("a row has an answer already", where=row.where, hint=hint)
    if len(row.images) != 1:
        hint = "give each image a row of its own, or name the folder of the images"
        raise UsageError(f"a row has {len(row.images)} images, not one", where=row.where, hint=hint)
    try:
        check_conversation(row.turns, needs_answer=False)
        if not row.images[0].path.is_file():
            data.verify_image(row.images[0].path)
    except LorgnetteError as error:
        return RowLocation.from_example(row).to_problem(error)
    return row


def _leave_out_copies(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """The first file of each content, and the other files with the first one that has their bytes."""
    readable = [path for path in paths if path.is_file() and os.access(path, os.R_OK)]  # a pipe blocks for ever
    originals = data.map_identical_files(readable)
    firsts: dict[Path, Path] = {}
    copies: dict[Path, Path] = {}
    for path in readable:
        if (first := firsts.setdefault(originals[path], path)) != path:
            copies[path] = first
    return [path for path in paths if path not in copies], copies


def _describe_copies(copies: Mapping[Path, Path], folder: Path) -> str:
    pairs = [f"{_name(copy, folder)} is {_name(first, folder)}" for copy, first in copies.items()]
    more = f" and {len(pairs) - _MAX_LISTED} more" if len(pairs) > _MAX_LISTED else ""
    count = f"{len(copies)} file{' is a copy' if len(copies) == 1 else 's are copies'}"
    return f"{count} of another, asked about once: {', '.join(pairs[:_MAX_LISTED])}{more}"


def _find_broken(paths: Sequence[Path], *, keeps_shape: bool) -> dict[int, str]:
    """Number → what is wrong, from names, headers and the ends of files."""
    load_formats()  # before threads race to load Pillow's plugins

    def check(path: Path) -> str:
        if not is_unicode(str(path)):
            return "the name of its file is not UTF-8"
        try:
            size = data.verify_image(path)
            if keeps_shape:
                data.check_aspect(size)
        except LorgnetteError as error:
            return error.message
        return ""

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return {number: words for number, words in enumerate(pool.map(check, paths)) if words}


def _name(path: Path, folder: Path) -> str:
    """The posix path relative to the folder. Of a name that is not UTF-8, which no file here can hold, the escaped
    form."""
    name = os.path.relpath(path, folder).replace(os.sep, "/")
    return name if is_unicode(name) else name.encode("utf-8", "backslashreplace").decode()


def _build_row(path: Path, prompt: str, row: int) -> Example:
    return Example(path.name, (Turn("user", (Image(path), prompt)),), path, row)
