"""Scans every row and every image of a source once: text, image headers, and on request image signatures.

Of many rows, forked processes scan blocks; the result is the same. Knows nothing about file formats, tokens or models,
nor about the part that a row will be in.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, cast

from lorgnette.data.boxes import check_boxes
from lorgnette.data.checks import near_duplicates
from lorgnette.data.checks.image_infos import ImageInfo, ImageInfos
from lorgnette.data.checks.name_matches import NameMatches
from lorgnette.data.checks.row_remarks import RemarkCounter, Remarks, list_remarks
from lorgnette.data.conversation import check_conversation
from lorgnette.data.example_table import ExampleTable
from lorgnette.data.formats.columns import ColumnReader, OpenChoiceError
from lorgnette.data.images import check_aspect, decode_preview, is_deep, load_formats, verify_image
from lorgnette.data.row_location import PendingRow, Row, RowLocation, RowStream
from lorgnette.errors import LorgnetteError
from lorgnette.io.processes import count_processes, map_in_processes
from lorgnette.types import Example, Finding, Problem

_TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")
_BLOCK_SIZE, _TASK_SIZE, _PROBE_SIZE = 1024, 16, 64
"""Rows per block; images per task of a thread; images per measurement of the waiting time."""
MIN_SHARED_ROWS = 8192
"""Rows of a source that this process scans before it starts others: most sources have no more."""
_SHARED_BLOCK_SIZE = 2048
"""Rows that another process scans at once."""
_MAX_STARTS = 8
"""How often other processes are started for a source whose rows have ever other columns."""
MIN_CONTRAST = 16
"""Of 0–255: in an image below it a person sees one gray, such as a 16-bit scan that uses few of its values."""
_MAX_WAIT = 0.0003
"""Seconds of waiting per image above which threads are used. Reading the header of a cached file takes a tenth of it,
three tenths of it while threads compete for Python's lock."""


_Info = ImageInfo | LorgnetteError


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The rows in the source's order. image_infos: the usable rows' images, in the order of their first use. remarks:
    what is counted over all rows of a source, such as keys that are not read."""

    examples: ExampleTable
    problems: list[Problem]
    image_infos: ImageInfos
    remarks: list[Finding] = field(default_factory=list)

    def merge(self, other: "ScanResult") -> "ScanResult":
        examples, problems = ExampleTable(chain(self.examples, other.examples)), self.problems + other.problems
        paths = [image.path for image in examples.images]
        infos = [other.image_infos.get(path) or self.image_infos[path] for path in paths]
        return ScanResult(examples, problems, ImageInfos(examples.images, infos), self.remarks + other.remarks)


@dataclass(slots=True)
class _ScannedRows:
    """Some rows. infos: of the images of `examples`. remarks: (row's number in `examples`, its remarks), if it has any.
    named: numbers of the rows with images that were found by name."""

    num_rows: int = 0
    examples: ExampleTable = field(default_factory=ExampleTable)
    problems: list[Problem] = field(default_factory=list)
    infos: list[ImageInfo] = field(default_factory=list)
    remarks: list[tuple[int, Remarks]] = field(default_factory=list)
    named: list[int] = field(default_factory=list)

    @classmethod
    def from_rows(cls, scanned: Iterable[tuple[Row, dict[Path, ImageInfo]]]) -> "_ScannedRows":
        result, infos = cls(), dict[Path, ImageInfo]()
        for row, own_infos in scanned:
            result.num_rows += 1
            if isinstance(row, Problem):
                result.problems.append(row)
                continue
            if remarks := list_remarks(row):
                result.remarks.append((len(result.examples), remarks))
            if any(image.written for image in row.images):
                result.named.append(len(result.examples))
            result.examples.add(row)
            infos |= own_infos
        result.infos = [infos[image.path] for image in result.examples.images]
        return result


def scan(
    rows: Iterable[Row],
    *,
    with_signatures: bool = False,
    needs_answer: bool = True,
    keeps_shape: bool = False,
    on_rows: Callable[[int], None] = lambda count: None,
) -> ScanResult:
    """Check every row and image.

    with_signatures: decode every image roughly, to find near-duplicates and damage in the middle of a file.
    needs_answer: False for predictions, which need no answer in a row. keeps_shape: whether the model gets images in
    their own shape, which must not be too narrow then. on_rows: is told of rows that are scanned.
    """
    scanner = _RowScanner(with_signatures, needs_answer, keeps_shape)
    examples, problems = ExampleTable(), list[Problem]()
    image_infos = ImageInfos(examples.images)
    remarks, name_matches = RemarkCounter(), NameMatches()
    for part in _scan_stream(rows, scanner) if isinstance(rows, RowStream) else scanner.scan_blocks(rows):
        for number, own_remarks in part.remarks:
            remarks.add(part.examples[number], own_remarks)
        for number in part.named:
            name_matches.add(part.examples[number])
        on_rows(part.num_rows)
        for number, info in zip(examples.extend(part.examples), part.infos, strict=True):
            image_infos.add(number, info)
        problems += part.problems
    examples.drop_lookup()
    if collisions := name_matches.find_collisions(examples):
        problems += collisions.values()
        examples = ExampleTable(row for row in examples if row not in collisions)
        image_infos = ImageInfos(examples.images, [image_infos[image.path] for image in examples.images])
    return ScanResult(examples, problems, image_infos, remarks.build_findings())


def _scan_stream(stream: RowStream, scanner: "_RowScanner") -> Iterator[_ScannedRows]:
    """Source by source: first rows here, the others in other processes if there are many."""
    for source in stream.sources:
        first_rows = list(islice(source, _limit(MIN_SHARED_ROWS, stream.max_rows)))
        yield from scanner.scan_blocks(stream.interpret(first_rows))
        last = first_rows[-1] if first_rows else None
        is_long = len(first_rows) == MIN_SHARED_ROWS and isinstance(last, PendingRow) and last.can_be_sent
        if is_long and isinstance(last, PendingRow) and (num_processes := count_processes()) > 1:
            yield from _scan_in_processes(stream, source, last, scanner, num_processes)
        yield from scanner.scan_blocks(stream.interpret(source))


def _limit(count: int, max_rows: int | None) -> int:
    return count if max_rows is None else min(count, max_rows)


def _scan_in_processes(
    stream: RowStream,
    source: Iterator[PendingRow | Row],
    last: PendingRow,
    scanner: "_RowScanner",
    num_processes: int,
) -> Iterator[_ScannedRows]:
    """The rows of the source behind `last`, in blocks that forked processes interpret and scan.

    A block whose rows have new columns is scanned here, since their choice depends on the rows before it, and other
    processes are started, which know that choice. So is the block in which `stream.max_rows` is reached.
    """
    blocks: Iterator[list[PendingRow | Row]] = _split_into_blocks(islice(source, stream.max_rows), _SHARED_BLOCK_SIZE)
    failure: Exception | None = None
    for _ in range(_MAX_STARTS):
        sent = deque[list[PendingRow | Row]]()

        def pack_blocks(blocks: Iterable[list[PendingRow | Row]] = blocks, sent: deque[Any] = sent) -> Iterator[Any]:
            nonlocal failure
            try:
                for block in blocks:
                    sent.append(block)
                    yield [_pack(row) for row in block]
            except Exception as error:  # raised behind the rows before it, which may yet be scanned anew
                failure = error

        block = None
        with closing(map_in_processes(partial(scanner.scan_block, last), pack_blocks(), num_processes)) as parts:
            for part in parts:
                block = sent.popleft()
                if part is None or (stream.max_rows is not None and part.num_rows > stream.max_rows):
                    break
                stream.count(part.num_rows)
                yield part
                block = None
        if block is None:
            break
        yield from scanner.scan_blocks(stream.interpret(block))
        blocks = chain(sent, blocks)
    else:
        yield from scanner.scan_blocks(stream.interpret(chain.from_iterable(blocks)))
    if failure is not None and stream.max_rows != 0:
        raise failure


def _split_into_blocks(rows: Iterable[PendingRow | Row], size: int) -> Iterator[list[PendingRow | Row]]:
    """Blocks of rows. What is raised between two rows is raised behind the block with the first of them."""
    block = list[PendingRow | Row]()
    try:
        for row in rows:
            block.append(row)
            if len(block) == size:
                yield block
                block = []
    except LorgnetteError:
        if block:
            yield block
        raise
    if block:
        yield block


def _pack(row: PendingRow | Row) -> Any:
    """The row without what `scan_block` knows."""
    if not isinstance(row, PendingRow):
        return row
    location = row.location
    return location.row, location.number, location.sheet_row, row.content


@dataclass(slots=True)
class _RowScanner:
    """Scans rows as `scan` was asked to; each image once."""

    with_signatures: bool
    needs_answer: bool
    keeps_shape: bool
    image_infos: dict[Path, _Info] = field(default_factory=dict)
    known_paths: set[Path] = field(default_factory=set)

    def scan_blocks(self, rows: Iterable[Row]) -> Iterator[_ScannedRows]:
        """The rows, a block at a time."""
        scanned = self.scan_rows(rows)
        while (block := _ScannedRows.from_rows(islice(scanned, _SHARED_BLOCK_SIZE))).num_rows:
            yield block

    def scan_block(self, last: PendingRow, block: Sequence[Any]) -> _ScannedRows | None:
        """The rows of a block, which follow `last`. None if columns are to be chosen."""
        ColumnReader.may_choose = False
        rows = (
            PendingRow(last.location._replace(row=row[0], number=row[1], sheet_row=row[2]), row[3], last.read)
            if type(row) is tuple
            else row
            for row in block
        )
        try:
            return _ScannedRows.from_rows(self.scan_rows(RowStream([rows])))
        except OpenChoiceError:
            self.known_paths.intersection_update(self.image_infos)  # of the others nobody waits for the infos
            return None
        finally:  # this may be the only process, if no other can be started
            ColumnReader.may_choose = True

    def scan_rows(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[Path, ImageInfo]]]:
        """As the function `scan_rows`."""
        load_formats()  # here, so that a failure to load Pillow's plugins is not blamed on an image
        with _create_pool(decoding=self.with_signatures) as pool:
            blocks = _iter_blocks(rows, _ImageScanner(pool, self.with_signatures), self.known_paths)
            # pairwise: the next block's images are submitted before this block's rows are yielded.
            for (block, infos), _ in pairwise(chain(blocks, [((), ())])):
                self.image_infos.update(infos)
                for row in block:
                    if isinstance(row, Problem):
                        yield row, {}
                    else:
                        yield _check_example(row, self.image_infos, self.needs_answer, self.keeps_shape)


def scan_rows(
    rows: Iterable[Row], *, with_signatures: bool = False, needs_answer: bool = True, keeps_shape: bool = False
) -> Iterator[tuple[Row, dict[Path, ImageInfo]]]:
    """Every row in order, with what is known of its images; each image is scanned once.

    Works block by block, so that memory grows with the number of images and not of rows. A block's images are scanned
    while the caller handles the rows before it. Threads are used for decoding, which runs outside Python's lock, and
    for slow disks; headers of cached files are Python's own work, so that threads would only compete.
    """
    return _RowScanner(with_signatures, needs_answer, keeps_shape).scan_rows(rows)


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
    rows: Iterable[Row], scan_images: Callable[[list[Path]], Iterable[_Info]], known: set[Path]
) -> Iterator[tuple[Sequence[Row], Iterable[tuple[Path, _Info]]]]:
    """Blocks of rows, each with the pending infos of the images that are not known from earlier blocks."""
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
