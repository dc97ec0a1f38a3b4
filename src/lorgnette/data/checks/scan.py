"""Every row and every picture of a source, looked at once: text, headers, and if asked a sketch of each picture.

Knows nothing about forms of files, tokens or models, nor about which part a row will be in.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

from lorgnette.data.checks import near_duplicates
from lorgnette.data.conversation import check_conversation
from lorgnette.data.images import decode_preview, load_formats, verify_image
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

_BLOCK_SIZE, _TASK_SIZE, _PROBE_SIZE = 1024, 16, 64
_MAX_WAIT = 0.0003
"""Seconds that a picture may be waited for before others are looked at meanwhile; of a file at hand a header takes a
tenth of that, and three times as long where threads contend for Python."""


class ImageInfo(NamedTuple):
    """What is kept of a picture: (width, height) as seen, and its sketch if one was asked for and could be had; of a
    JPEG as a rule the upper quarter's, which most pictures have to themselves."""

    size: tuple[int, int]
    signature: bytes | None


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The rows in the source's order. looks: the pictures of the usable ones, in the order of their first use."""

    examples: list[Example]
    problems: list[Problem]
    image_infos: dict[Path, ImageInfo]

    def merge(self, other: "ScanResult") -> "ScanResult":
        return ScanResult(
            self.examples + other.examples, self.problems + other.problems, self.image_infos | other.image_infos
        )


def scan(rows: Iterable[Example | Problem], *, with_signatures: bool = False) -> ScanResult:
    """Look at every row. sketched: at every picture's pixels too, if only roughly, so that look-alikes are found and
    damage in the middle of a file as well."""
    found = ScanResult([], [], {})
    for row, looks in scan_rows(rows, with_signatures=with_signatures):
        if isinstance(row, Problem):
            found.problems.append(row)
        else:
            found.examples.append(row)
            found.image_infos.update(looks)
    return found


def compute_full_signatures(
    image_infos: Mapping[Path, ImageInfo], identical_files: Mapping[Path, Path]
) -> dict[Path, bytes]:
    """Of the pictures whose upper quarter looks like another's: nothing else can be a look-alike. JPEGs among them are
    decoded down to their end for it. same: `identities`; of equal files the first stands for all."""
    first: dict[Path, Path] = {}
    for path, file in identical_files.items():
        first.setdefault(file, path)
    upper = {path: sketch for path in first.values() if (sketch := image_infos[path].signature)}
    paths = list(upper)
    suspects = [paths[place] for place in near_duplicates.candidates(list(upper.values()))]
    with _create_pool(decoding=True) as pool:
        sketches = pool.map(lambda path: _compute_full_signature(path, upper[path]), suspects)
        return {path: sketch for path, sketch in zip(suspects, sketches, strict=True) if sketch}


def _compute_full_signature(path: Path, signature: bytes) -> bytes:
    if len(signature) > near_duplicates.UPPER_BYTES:
        return signature
    size, seen, _ = decode_preview(path, min_side=near_duplicates.MIN_SIDE, max_pixels=near_duplicates.MAX_PIXELS)
    return near_duplicates.image_signature(seen, size) if seen else b""


def _create_pool(*, decoding: bool) -> ThreadPoolExecutor:
    """What is slow to come is waited for by many; where pictures are decoded, more threads than cores spend half as
    much again on each other (bench/LOG.md)."""
    cores = os.cpu_count() or 1
    return ThreadPoolExecutor(min(16, cores if decoding else 4 * cores), thread_name_prefix="pictures")


def scan_rows(
    rows: Iterable[Example | Problem], *, with_signatures: bool = False
) -> Iterator[tuple[Example | Problem, dict[Path, ImageInfo]]]:
    """Every row in its order, with its pictures' looks; each picture is looked at once.

    Block by block, so that memory grows with the number of pictures and not of rows; a block's pictures are looked at
    while the rows before it are dealt with: in threads where they are decoded, which Pillow does beside Python, or
    waited for; a header that is at hand is Python's work, and threads would keep each other from it.
    """
    load_formats()  # Pillow's plugins are loaded, for which no picture is to blame
    seen: dict[Path, ImageInfo | _ImageError] = {}
    with _create_pool(decoding=with_signatures) as pool:
        asked = _iter_blocks(rows, _ImageScanner(pool, with_signatures))
        for (block, looks), _ in pairwise(chain(asked, [((), ())])):
            seen.update(looks)
            for row in block:
                yield (row, {}) if isinstance(row, Problem) else _check_example(row, seen)


class _ImageScanner:
    """How pictures are looked at: in threads, or one after the other until one must be waited for."""

    def __init__(self, pool: Executor, with_signatures: bool) -> None:
        self._pool, self._with_signatures = pool, with_signatures
        self.use_threads = with_signatures

    def __call__(self, paths: Sequence[Path]) -> Iterable["ImageInfo | _ImageError"]:
        _prefetch(paths)
        return self._scan_in_threads(paths) if self.use_threads else self._scan_inline(paths)

    def _scan_in_threads(self, paths: Sequence[Path]) -> Iterable["ImageInfo | _ImageError"]:
        """On their way. A few are one task: handing each over on its own costs a tenth of a photograph's look."""
        return chain.from_iterable(self._pool.map(self._scan_batch, _split_into_chunks(paths, _TASK_SIZE)))

    def _scan_inline(self, paths: Sequence[Path]) -> Iterator["ImageInfo | _ImageError"]:
        for turn in _split_into_chunks(paths, _PROBE_SIZE):
            if self.use_threads:
                yield from self._scan_in_threads(turn)
                continue
            began, worked = time.perf_counter(), time.thread_time()
            yield from self._scan_batch(turn)
            waited = time.perf_counter() - began - (time.thread_time() - worked)
            self.use_threads = waited > _MAX_WAIT * len(turn)

    def _scan_batch(self, paths: Sequence[Path]) -> "list[ImageInfo | _ImageError]":
        return [_scan_image(path, with_signatures=self._with_signatures) for path in paths]


def _split_into_chunks(paths: Sequence[Path], count: int) -> list[Sequence[Path]]:
    return [paths[at : at + count] for at in range(0, len(paths), count)]


def _prefetch(paths: Sequence[Path]) -> None:
    """Let the disk fetch them while pictures before them are decoded; where it cannot, they are waited for."""
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    for path in paths:
        # What cannot be opened is named when it is looked at. Not blocking: it may be a pipe.
        with suppress(OSError, ValueError):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


def _iter_blocks(
    rows: Iterable[Example | Problem], scan_images: Callable[[list[Path]], Iterable["ImageInfo | _ImageError"]]
) -> Iterator[tuple[Sequence[Example | Problem], Iterable[tuple[Path, "ImageInfo | _ImageError"]]]]:
    """Blocks of rows, each with the looks, on their way, of the pictures that no block before it had."""
    known: set[Path] = set()
    todo = iter(rows)
    while block := list(islice(todo, _BLOCK_SIZE)):
        paths = {picture.path: None for row in block if isinstance(row, Example) for picture in row.images}
        new = [path for path in paths if path not in known]
        known.update(new)
        yield block, zip(new, scan_images(new), strict=True)


class _ImageError(NamedTuple):
    """What is kept of an error: the error itself would hold on to every frame it went through."""

    message: str
    hint: str


def _scan_image(path: Path, *, with_signatures: bool) -> ImageInfo | _ImageError:
    try:
        if not with_signatures:
            return ImageInfo(verify_image(path), None)
        size, seen, whole = decode_preview(
            path,
            min_side=near_duplicates.MIN_SIDE,
            max_pixels=near_duplicates.MAX_PIXELS,
            upper_fraction=near_duplicates.UPPER_FRACTION,
        )
        sketch = near_duplicates.image_signature(seen, size) if seen else None
        return ImageInfo(size, sketch if whole or sketch is None else sketch[: near_duplicates.UPPER_BYTES])
    except LorgnetteError as error:
        return _ImageError(error.message, error.hint or "correct or remove the row")


def _check_example(
    example: Example, image_infos: dict[Path, ImageInfo | _ImageError]
) -> tuple[Example | Problem, dict[Path, ImageInfo]]:
    looks: dict[Path, ImageInfo] = {}
    try:
        check_conversation(example.turns)
        for picture in example.images:
            look = image_infos[picture.path]
            if isinstance(look, _ImageError):
                raise LorgnetteError(look.message, where=str(picture.path), hint=look.hint)
            looks[picture.path] = look
    except LorgnetteError as error:
        return RowLocation(example.source, example.row, example.row).to_problem(error), {}
    return example, looks
