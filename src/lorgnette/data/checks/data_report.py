"""Rows → what is wrong with them, before anything is trained: text and picture headers only.

Knows nothing about forms of files, tokens or models.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from lorgnette.data.checks.scan import Survey, survey
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

OnBadRow = Literal["error", "skip"]
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
    """Look at every row, and say what there is."""
    return report_of(survey(rows))


def report_of(seen: Survey) -> Report:
    sizes = sorted({look.size for look in seen.looks.values()}, key=lambda size: (size[0] * size[1], size))
    uses = sum(len(row.pictures) for row in seen.examples)
    answers = [len(turn.text) for row in seen.examples for turn in row.turns if turn.role == "assistant"]
    return Report(
        rows=len(seen.examples) + len(seen.problems),
        usable=len(seen.examples),
        problems=tuple(seen.problems),
        pictures=len(seen.looks),
        repeats=uses - len(seen.looks),
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        answers=_lengths(answers),
    )


def usable(rows: Iterable[Example | Problem], *, on_bad_row: OnBadRow, where: Path | None = None) -> Survey:
    """The rows to go on with, and those left out; "error" leaves none out but raises, naming them.

    where: the file they are from, for the error that there are none.
    """
    seen = survey(rows)
    total = len(seen.examples) + len(seen.problems)
    if total == 0:
        place = str(where) if where else None
        raise LorgnetteError("there are no rows", where=place, remedy="name a data file that has some")
    if seen.problems and (on_bad_row == "error" or not seen.examples):
        raise refusal(seen.problems, total)
    return seen


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
