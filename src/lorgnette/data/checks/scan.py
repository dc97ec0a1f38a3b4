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
from lorgnette.data.conversation import must_be_learnable
from lorgnette.data.images import formats, glimpse, verified
from lorgnette.data.rows import Place
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

_BLOCK, _TASK, _TURN = 1024, 16, 64
_PATIENCE = 0.0003
"""Seconds that a picture may be waited for before others are looked at meanwhile; of a file at hand a header takes a
tenth of that, and three times as long where threads contend for Python."""


class Look(NamedTuple):
    """What is kept of a picture: (width, height) as seen, and its sketch if one was asked for and could be had; of a
    JPEG as a rule the upper quarter's, which most pictures have to themselves."""

    size: tuple[int, int]
    sketch: bytes | None


@dataclass(frozen=True, slots=True)
class Survey:
    """The rows in the source's order. looks: the pictures of the usable ones, in the order of their first use."""

    examples: list[Example]
    problems: list[Problem]
    looks: dict[Path, Look]

    def joined(self, other: "Survey") -> "Survey":
        return Survey(self.examples + other.examples, self.problems + other.problems, self.looks | other.looks)


def survey(rows: Iterable[Example | Problem], *, sketched: bool = False) -> Survey:
    """Look at every row. sketched: at every picture's pixels too, if only roughly, so that look-alikes are found and
    damage in the middle of a file as well."""
    found = Survey([], [], {})
    for row, looks in judged(rows, sketched=sketched):
        if isinstance(row, Problem):
            found.problems.append(row)
        else:
            found.examples.append(row)
            found.looks.update(looks)
    return found


def whole_sketches(looks: Mapping[Path, Look], same: Mapping[Path, Path]) -> dict[Path, bytes]:
    """Of the pictures whose upper quarter looks like another's: nothing else can be a look-alike. JPEGs among them are
    decoded down to their end for it. same: `identities`; of equal files the first stands for all."""
    first: dict[Path, Path] = {}
    for path, file in same.items():
        first.setdefault(file, path)
    upper = {path: sketch for path in first.values() if (sketch := looks[path].sketch)}
    paths = list(upper)
    suspects = [paths[place] for place in near_duplicates.suspects(list(upper.values()))]
    with _pool(decoding=True) as pool:
        sketches = pool.map(lambda path: _whole(path, upper[path]), suspects)
        return {path: sketch for path, sketch in zip(suspects, sketches, strict=True) if sketch}


def _whole(path: Path, sketch: bytes) -> bytes:
    if len(sketch) > near_duplicates.UPPER:
        return sketch
    size, seen, _ = glimpse(path, least=near_duplicates.LEAST, most=near_duplicates.MOST)
    return near_duplicates.sketch(seen, size) if seen else b""


def _pool(*, decoding: bool) -> ThreadPoolExecutor:
    """What is slow to come is waited for by many; where pictures are decoded, more threads than cores spend half as
    much again on each other (bench/LOG.md)."""
    cores = os.cpu_count() or 1
    return ThreadPoolExecutor(min(16, cores if decoding else 4 * cores), thread_name_prefix="pictures")


def judged(
    rows: Iterable[Example | Problem], *, sketched: bool = False
) -> Iterator[tuple[Example | Problem, dict[Path, Look]]]:
    """Every row in its order, with its pictures' looks; each picture is looked at once.

    Block by block, so that memory grows with the number of pictures and not of rows; a block's pictures are looked at
    while the rows before it are dealt with: in threads where they are decoded, which Pillow does beside Python, or
    waited for; a header that is at hand is Python's work, and threads would keep each other from it.
    """
    formats()  # Pillow's plugins are loaded, for which no picture is to blame
    seen: dict[Path, Look | _Unreadable] = {}
    with _pool(decoding=sketched) as pool:
        asked = _asked(rows, _Looks(pool, sketched))
        for (block, looks), _ in pairwise(chain(asked, [((), ())])):
            seen.update(looks)
            for row in block:
                yield (row, {}) if isinstance(row, Problem) else _judge(row, seen)


class _Looks:
    """How pictures are looked at: in threads, or one after the other until one must be waited for."""

    def __init__(self, pool: Executor, sketched: bool) -> None:
        self._pool, self._sketched = pool, sketched
        self.threads = sketched

    def __call__(self, paths: Sequence[Path]) -> Iterable["Look | _Unreadable"]:
        _announce(paths)
        return self._beside(paths) if self.threads else self._here(paths)

    def _beside(self, paths: Sequence[Path]) -> Iterable["Look | _Unreadable"]:
        """On their way. A few are one task: handing each over on its own costs a tenth of a photograph's look."""
        return chain.from_iterable(self._pool.map(self._taken, _cut(paths, _TASK)))

    def _here(self, paths: Sequence[Path]) -> Iterator["Look | _Unreadable"]:
        for turn in _cut(paths, _TURN):
            if self.threads:
                yield from self._beside(turn)
                continue
            began, worked = time.perf_counter(), time.thread_time()
            yield from self._taken(turn)
            waited = time.perf_counter() - began - (time.thread_time() - worked)
            self.threads = waited > _PATIENCE * len(turn)

    def _taken(self, paths: Sequence[Path]) -> "list[Look | _Unreadable]":
        return [_look(path, sketched=self._sketched) for path in paths]


def _cut(paths: Sequence[Path], count: int) -> list[Sequence[Path]]:
    return [paths[at : at + count] for at in range(0, len(paths), count)]


def _announce(paths: Sequence[Path]) -> None:
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


def _asked(
    rows: Iterable[Example | Problem], look: Callable[[list[Path]], Iterable["Look | _Unreadable"]]
) -> Iterator[tuple[Sequence[Example | Problem], Iterable[tuple[Path, "Look | _Unreadable"]]]]:
    """Blocks of rows, each with the looks, on their way, of the pictures that no block before it had."""
    known: set[Path] = set()
    todo = iter(rows)
    while block := list(islice(todo, _BLOCK)):
        paths = {picture.path: None for row in block if isinstance(row, Example) for picture in row.pictures}
        new = [path for path in paths if path not in known]
        known.update(new)
        yield block, zip(new, look(new), strict=True)


class _Unreadable(NamedTuple):
    """What is kept of an error: the error itself would hold on to every frame it went through."""

    what: str
    remedy: str


def _look(path: Path, *, sketched: bool) -> Look | _Unreadable:
    try:
        if not sketched:
            return Look(verified(path), None)
        size, seen, whole = glimpse(
            path, least=near_duplicates.LEAST, most=near_duplicates.MOST, upper=near_duplicates.UPPER_SEEN
        )
        sketch = near_duplicates.sketch(seen, size) if seen else None
        return Look(size, sketch if whole or sketch is None else sketch[: near_duplicates.UPPER])
    except LorgnetteError as error:
        return _Unreadable(error.what, error.remedy or "correct or remove the row")


def _judge(example: Example, seen: dict[Path, Look | _Unreadable]) -> tuple[Example | Problem, dict[Path, Look]]:
    looks: dict[Path, Look] = {}
    try:
        must_be_learnable(example.turns)
        for picture in example.pictures:
            look = seen[picture.path]
            if isinstance(look, _Unreadable):
                raise LorgnetteError(look.what, where=str(picture.path), remedy=look.remedy)
            looks[picture.path] = look
    except LorgnetteError as error:
        return Place(example.source, example.row, example.row).problem(error), {}
    return example, looks
