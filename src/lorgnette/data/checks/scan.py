"""Scans every row and every image of a source once: text, image headers, and on request image signatures.

Knows nothing about file formats, tokens or models, nor about the part that a row will be in.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, cast

from lorgnette.data.boxes import check_boxes
from lorgnette.data.checks import near_duplicates
from lorgnette.data.checks.name_matches import NameMatches
from lorgnette.data.checks.row_remarks import RemarkCounter
from lorgnette.data.conversation import check_conversation
from lorgnette.data.images import check_aspect, decode_preview, is_deep, load_formats, verify_image
from lorgnette.data.row_location import Row, RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Finding, Problem

_TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")
_BLOCK_SIZE, _TASK_SIZE, _PROBE_SIZE = 1024, 16, 64
"""Rows per block; images per task of a thread; images per measurement of the waiting time."""
MIN_CONTRAST = 16
"""Of 0–255: in an image below it a person sees one gray, such as a 16-bit scan that uses few of its values."""
_MAX_WAIT = 0.0003
"""Seconds of waiting per image above which threads are used. Reading the header of a cached file takes a tenth of it,
three tenths of it while threads compete for Python's lock."""


class ImageInfo(NamedTuple):
    """(width, height) after orientation; on request the signature, if possible, and the contrast: the largest
    difference of two pixels in a color, of 0–255.

    A JPEG's signature is usually only that of its upper quarter, which tells most images apart.
    """

    size: tuple[int, int]
    signature: bytes | None
    contrast: int | None = None


_Info = ImageInfo | LorgnetteError


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The rows in the source's order. image_infos: the usable rows' images, in the order of their first use. remarks:
    what is counted over all rows of a source, such as keys that are not read."""

    examples: list[Example]
    problems: list[Problem]
    image_infos: dict[Path, ImageInfo]
    remarks: list[Finding] = field(default_factory=list)

    def merge(self, other: "ScanResult") -> "ScanResult":
        examples, problems = self.examples + other.examples, self.problems + other.problems
        infos, remarks = self.image_infos | other.image_infos, self.remarks + other.remarks
        return ScanResult(examples, problems, infos, remarks)


def scan(
    rows: Iterable[Row], *, with_signatures: bool = False, needs_answer: bool = True, keeps_shape: bool = False
) -> ScanResult:
    """Check every row and image.

    with_signatures: decode every image roughly, to find near-duplicates and damage in the middle of a file.
    needs_answer: False for predictions, which need no answer in a row. keeps_shape: whether the model gets images in
    their own shape, which must not be too narrow then.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    image_infos: dict[Path, ImageInfo] = {}
    remarks, name_matches = RemarkCounter(), NameMatches()
    scanned = scan_rows(rows, with_signatures=with_signatures, needs_answer=needs_answer, keeps_shape=keeps_shape)
    for row, infos in scanned:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        examples.append(row)
        image_infos.update(infos)
        remarks.add(row)
        name_matches.add(row)
    if collisions := name_matches.find_collisions(examples):
        problems += collisions.values()
        examples = [row for row in examples if row not in collisions]
        used = {image.path for row in examples for image in row.images}
        image_infos = {path: info for path, info in image_infos.items() if path in used}
    return ScanResult(examples, problems, image_infos, remarks.build_findings())


def scan_rows(
    rows: Iterable[Row], *, with_signatures: bool = False, needs_answer: bool = True, keeps_shape: bool = False
) -> Iterator[tuple[Row, dict[Path, ImageInfo]]]:
    """Every row in order, with what is known of its images; each image is scanned once.

    Works block by block, so that memory grows with the number of images and not of rows. A block's images are scanned
    while the caller handles the rows before it. Threads are used for decoding, which runs outside Python's lock, and
    for slow disks; headers of cached files are Python's own work, so that threads would only compete.
    """
    load_formats()  # here, so that a failure to load Pillow's plugins is not blamed on an image
    image_infos: dict[Path, _Info] = {}
    with _create_pool(decoding=with_signatures) as pool:
        blocks = _iter_blocks(rows, _ImageScanner(pool, with_signatures))
        # pairwise: the next block's images are submitted before this block's rows are yielded.
        for (block, infos), _ in pairwise(chain(blocks, [((), ())])):
            image_infos.update(infos)
            for row in block:
                if isinstance(row, Problem):
                    yield row, {}
                else:
                    yield _check_example(row, image_infos, needs_answer, keeps_shape)


def compute_full_signatures(infos: Mapping[Path, ImageInfo], identical_files: Mapping[Path, Path]) -> dict[Path, bytes]:
    """Whole signatures of the images that may be near-duplicates: those whose upper quarter looks like another's.

    Decodes the JPEGs among them to their end. identical_files: `map_identical_files`; only the first of a set is used.
    """
    first: dict[Path, Path] = {}
    for path, file in identical_files.items():
        first.setdefault(file, path)
    signatures = {path: signature for path in first.values() if (signature := infos[path].signature)}
    paths = list(signatures)
    suspects = [paths[index] for index in near_duplicates.candidates(list(signatures.values()))]

    def complete(path: Path) -> bytes | None:
        is_whole = len(signatures[path]) > near_duplicates.UPPER_BYTES
        return signatures[path] if is_whole else _decode_signature(path).signature

    with _create_pool(decoding=True) as pool:
        full = pool.map(complete, suspects)
        return {path: signature for path, signature in zip(suspects, full, strict=True) if signature}


def _decode_signature(path: Path, upper_fraction: float = 1.0) -> ImageInfo:
    """The image's size and signature. Below 1.0, a JPEG's signature may describe only its upper quarter."""
    side, pixels = near_duplicates.MIN_SIDE, near_duplicates.MAX_PIXELS
    size, preview, is_whole = decode_preview(path, min_side=side, max_pixels=pixels, upper_fraction=upper_fraction)
    if preview is None:
        return ImageInfo(size, None)
    # Only the upper part is the image's own; if nothing is to be seen there, the rest decides.
    own = preview if is_whole else preview.crop((0, 0, preview.width, int(upper_fraction * preview.height)))
    contrast = max(high - low for low, high in cast("tuple[tuple[int, int], ...]", own.getextrema()))
    if not is_whole and contrast < MIN_CONTRAST:
        return _decode_signature(path)
    is_plain = contrast == 0 and not is_deep(path)  # an image of one color is meant to be one
    signature, upper = near_duplicates.image_signature(preview, size), near_duplicates.UPPER_BYTES
    return ImageInfo(size, signature if is_whole else signature[:upper], None if is_plain else contrast)


def _create_pool(*, decoding: bool) -> ThreadPoolExecutor:
    """Reading headers is I/O-bound: 4 threads per core. Decoding is CPU-bound: one per core (more threads took 50 %
    longer, bench/LOG.md)."""
    cores = os.cpu_count() or 1
    return ThreadPoolExecutor(min(16, cores if decoding else 4 * cores), thread_name_prefix="images")


class _ImageScanner:
    """Scans images in threads, or one after the other as long as the disk is fast."""

    def __init__(self, pool: Executor, with_signatures: bool) -> None:
        self._pool, self._with_signatures = pool, with_signatures
        self.use_threads = with_signatures

    def __call__(self, paths: Sequence[Path]) -> Iterable[_Info]:
        _prefetch(paths)
        return self._scan_in_threads(paths) if self.use_threads else self._scan_inline(paths)

    def _scan_in_threads(self, paths: Sequence[Path]) -> Iterable[_Info]:
        """Submitted at once. Several images form a task: a task per image costs a tenth of a photograph's scan."""
        return chain.from_iterable(self._pool.map(self._scan_batch, _split_into_chunks(paths, _TASK_SIZE)))

    def _scan_inline(self, paths: Sequence[Path]) -> Iterator[_Info]:
        for chunk in _split_into_chunks(paths, _PROBE_SIZE):
            if self.use_threads:
                yield from self._scan_in_threads(chunk)
                continue
            start, start_cpu = time.perf_counter(), time.thread_time()
            yield from self._scan_batch(chunk)
            waited = time.perf_counter() - start - (time.thread_time() - start_cpu)
            self.use_threads = waited > _MAX_WAIT * len(chunk)

    def _scan_batch(self, paths: Sequence[Path]) -> list[_Info]:
        return [_scan_image(path, with_signatures=self._with_signatures) for path in paths]


def _split_into_chunks(paths: Sequence[Path], count: int) -> list[Sequence[Path]]:
    return [paths[start : start + count] for start in range(0, len(paths), count)]


def _prefetch(paths: Sequence[Path]) -> None:
    """Ask the system to read the files ahead, while earlier images are decoded."""
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    for path in paths:
        # Errors are reported when the image is scanned. Non-blocking: it may be a pipe.
        with suppress(OSError, ValueError):
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


def _iter_blocks(
    rows: Iterable[Row], scan_images: Callable[[list[Path]], Iterable[_Info]]
) -> Iterator[tuple[Sequence[Row], Iterable[tuple[Path, _Info]]]]:
    """Blocks of rows, each with the pending infos of the images that no earlier block has."""
    known: set[Path] = set()
    remaining = iter(rows)
    while block := list(islice(remaining, _BLOCK_SIZE)):
        paths = {image.path: None for row in block if isinstance(row, Example) for image in row.images}
        new = [path for path in paths if path not in known]
        known.update(new)
        yield block, zip(new, scan_images(new), strict=True)


def _scan_image(path: Path, *, with_signatures: bool) -> _Info:
    try:
        if with_signatures:
            return _decode_signature(path, near_duplicates.UPPER_FRACTION)
        return ImageInfo(verify_image(path), None)
    except LorgnetteError as error:
        # The error itself would keep every frame that it passed through alive.
        return LorgnetteError(error.message, where=error.where, hint=error.hint or "correct or remove the row")


def _check_example(
    example: Example, image_infos: dict[Path, _Info], needs_answer: bool, keeps_shape: bool
) -> tuple[Row, dict[Path, ImageInfo]]:
    own_infos: dict[Path, ImageInfo] = {}
    try:
        if needs_answer and len(example.turns) == 1 and example.source.suffix.lower() in _TABLE_SUFFIXES:
            hint = "add a column caption, or name it: --caption-column NAME"
            raise LorgnetteError("there is no caption column", hint=hint)
        check_conversation(example.turns, needs_answer=needs_answer)
        for image in example.images:
            info = image_infos[image.path]
            if isinstance(info, LorgnetteError):
                raise LorgnetteError(info.message, where=info.where, hint=info.hint)
            if keeps_shape:
                check_aspect(info.size, str(image.path))
            own_infos[image.path] = info
        check_boxes(example, [own_infos[image.path].size for image in example.images])
    except LorgnetteError as error:
        return RowLocation.from_example(example).to_problem(error), {}
    return example, own_infos
