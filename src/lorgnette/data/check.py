"""Rows → what is wrong with them, before anything is trained: text and picture headers only.

Knows nothing about forms of files, tokens or models.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

from lorgnette.data.fields import Place
from lorgnette.data.pictures import verified
from lorgnette.data.turns import must_be_learnable
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

OnBadRow = Literal["error", "skip"]
_BLOCK = 1024
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the answers, in characters."""

    shortest: int
    median: float
    mean: float
    longest: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a person asks before training. Pictures, sizes and lengths are those of the usable rows."""

    rows: int
    usable: int
    problems: tuple[Problem, ...]
    pictures: int
    """Distinct paths."""
    repeats: int
    """Uses of a picture beyond its first."""
    smallest: tuple[int, int] | None
    """(width, height) of the picture with the fewest pixels; None where there is no picture."""
    largest: tuple[int, int] | None
    answers: Lengths | None
    """None where no row is usable."""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        problems = [
            {"source": str(each.source), "row": each.row, "what": each.what, "remedy": each.remedy}
            for each in self.problems
        ]
        sizes = {
            name: size and {"width": size[0], "height": size[1]}
            for name, size in (("smallest", self.smallest), ("largest", self.largest))
        }
        return {
            "rows": self.rows,
            "usable": self.usable,
            "problems": problems,
            "pictures": self.pictures,
            "repeats": self.repeats,
            **sizes,
            "answers": self.answers and asdict(self.answers),
        }


def check(rows: Iterable[Example | Problem]) -> Report:
    """Look at every row; keep nothing of the good ones but their measures."""
    count = uses = 0
    problems: list[Problem] = []
    sizes: dict[Path, tuple[int, int]] = {}
    answers: list[int] = []
    for row, looks in _judged(rows):
        count += 1
        if isinstance(row, Problem):
            problems.append(row)
            continue
        uses += len(row.pictures)
        sizes |= looks
        answers += [len(turn.text) for turn in row.turns if turn.role == "assistant"]
    by_area = sorted(set(sizes.values()), key=lambda size: (size[0] * size[1], size))
    return Report(
        rows=count,
        usable=count - len(problems),
        problems=tuple(problems),
        pictures=len(sizes),
        repeats=uses - len(sizes),
        smallest=by_area[0] if by_area else None,
        largest=by_area[-1] if by_area else None,
        answers=_lengths(answers),
    )


def usable(
    rows: Iterable[Example | Problem], *, on_bad_row: OnBadRow, where: Path | None = None
) -> tuple[list[Example], list[Problem]]:
    """The rows to go on with, and those left out; "error" leaves none out but raises, naming them.

    where: the file they are from, for the error that there are none.
    """
    examples: list[Example] = []
    problems: list[Problem] = []
    for row, _ in _judged(rows):
        if isinstance(row, Problem):
            problems.append(row)
        else:
            examples.append(row)
    total = len(examples) + len(problems)
    if total == 0:
        place = str(where) if where else None
        raise LorgnetteError("there are no rows", where=place, remedy="name a data file that has some")
    if problems and (on_bad_row == "error" or not examples):
        raise refusal(problems, total)
    return examples, problems


def refusal(problems: Sequence[Problem], total: int) -> LorgnetteError:
    """The error that names the rows which keep a training from starting."""
    skip = "data.on_bad_row=skip (prepare: --on-bad-row skip)"
    way_out = f", or go on without them: {skip}" if len(problems) < total else ""
    return LorgnetteError(
        f"{len(problems)} of {total} rows cannot be used:\n{_listing(problems)}\n", remedy=f"fix them{way_out}"
    )


def _lengths(answers: list[int]) -> Lengths | None:
    return Lengths(min(answers), median(answers), fmean(answers), max(answers)) if answers else None


def _listing(problems: Sequence[Problem]) -> str:
    listed = [f"  {problem}" for problem in problems[:_SHOWN]]
    more = len(problems) - _SHOWN
    return "\n".join([*listed, f"  … and {more} more"] if more > 0 else listed)


class _Unreadable(NamedTuple):
    """What is kept of an error: the error itself would hold on to every frame it went through."""

    what: str
    remedy: str


_Look = tuple[int, int] | _Unreadable


def _judged(rows: Iterable[Example | Problem]) -> Iterator[tuple[Example | Problem, dict[Path, tuple[int, int]]]]:
    """Every row in its order, with its pictures' sizes; each picture is looked at once.

    Block by block, so that memory grows with the number of pictures and not of rows. Threads, because on a network
    drive the wait is the work.
    """
    seen: dict[Path, _Look] = {}
    todo = iter(rows)
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1)), thread_name_prefix="headers") as pool:
        while block := list(islice(todo, _BLOCK)):
            paths = {picture.path: None for row in block if isinstance(row, Example) for picture in row.pictures}
            new = [path for path in paths if path not in seen]
            seen.update(zip(new, pool.map(_look, new), strict=True))
            for row in block:
                yield (row, {}) if isinstance(row, Problem) else _judge(row, seen)


def _look(path: Path) -> _Look:
    try:
        return verified(path)
    except LorgnetteError as error:
        return _Unreadable(error.what, error.remedy or "correct or remove the row")


def _judge(example: Example, seen: dict[Path, _Look]) -> tuple[Example | Problem, dict[Path, tuple[int, int]]]:
    sizes: dict[Path, tuple[int, int]] = {}
    try:
        must_be_learnable(example.turns)
        for picture in example.pictures:
            look = seen[picture.path]
            if isinstance(look, _Unreadable):
                raise LorgnetteError(look.what, where=str(picture.path), remedy=look.remedy)
            sizes[picture.path] = look
    except LorgnetteError as error:
        return Place(example.source, example.row, example.row).problem(error), {}
    return example, sizes
