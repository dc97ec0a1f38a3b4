"""Rows → what is wrong with them, before anything is trained: text and picture headers only.

Knows nothing about forms of files, tokens or models.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from lorgnette.data.checks.scan import ScanResult, scan
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

OnBadRow = Literal["error", "skip"]
_MAX_LISTED = 10


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """Of the answers, in characters."""

    shortest: int
    median: float
    mean: float
    longest: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """Everything a person asks before training. Pictures, sizes and lengths are those of the usable rows."""

    num_rows: int
    num_usable: int
    problems: tuple[Problem, ...]
    num_images: int
    """Distinct paths."""
    num_repeated_uses: int
    """Uses of a picture beyond its first."""
    smallest_size: tuple[int, int] | None
    """(width, height) of the picture with the fewest pixels; None where there is no picture."""
    largest_size: tuple[int, int] | None
    answer_lengths: AnswerLengths | None
    """None where no row is usable."""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        problems = [
            {"source": str(each.source), "row": each.row, "what": each.message, "remedy": each.hint}
            for each in self.problems
        ]
        sizes = {
            name: size and {"width": size[0], "height": size[1]}
            for name, size in (("smallest", self.smallest_size), ("largest", self.largest_size))
        }
        return {
            "rows": self.num_rows,
            "usable": self.num_usable,
            "problems": problems,
            "pictures": self.num_images,
            "repeats": self.num_repeated_uses,
            **sizes,
            "answers": self.answer_lengths and asdict(self.answer_lengths),
        }


def check_rows(rows: Iterable[Example | Problem]) -> DataReport:
    """Look at every row, and say what there is."""
    return build_report(scan(rows))


def build_report(scan_result: ScanResult) -> DataReport:
    sizes = sorted({look.size for look in scan_result.image_infos.values()}, key=lambda size: (size[0] * size[1], size))
    uses = sum(len(row.images) for row in scan_result.examples)
    answers = [len(turn.text) for row in scan_result.examples for turn in row.turns if turn.role == "assistant"]
    return DataReport(
        num_rows=len(scan_result.examples) + len(scan_result.problems),
        num_usable=len(scan_result.examples),
        problems=tuple(scan_result.problems),
        num_images=len(scan_result.image_infos),
        num_repeated_uses=uses - len(scan_result.image_infos),
        smallest_size=sizes[0] if sizes else None,
        largest_size=sizes[-1] if sizes else None,
        answer_lengths=_summarize_lengths(answers),
    )


def load_usable(rows: Iterable[Example | Problem], *, on_bad_row: OnBadRow, source: Path | None = None) -> ScanResult:
    """The rows to go on with, and those left out; "error" leaves none out but raises, naming them.

    where: the file they are from, for the error that there are none.
    """
    seen = scan(rows)
    total = len(seen.examples) + len(seen.problems)
    if total == 0:
        place = str(source) if source else None
        raise LorgnetteError("there are no rows", where=place, hint="name a data file that has some")
    if seen.problems and (on_bad_row == "error" or not seen.examples):
        raise build_refusal(seen.problems, total)
    return seen


def build_refusal(problems: Sequence[Problem], total: int) -> LorgnetteError:
    """The error that names the rows which keep a training from starting."""
    skip = "data.on_bad_row=skip (prepare: --on-bad-row skip)"
    way_out = f", or go on without them: {skip}" if len(problems) < total else ""
    return LorgnetteError(
        f"{len(problems)} of {total} rows cannot be used:\n{_list_problems(problems)}\n", hint=f"fix them{way_out}"
    )


def _summarize_lengths(answers: list[int]) -> AnswerLengths | None:
    return AnswerLengths(min(answers), median(answers), fmean(answers), max(answers)) if answers else None


def _list_problems(problems: Sequence[Problem]) -> str:
    listed = [f"  {problem}" for problem in problems[:_MAX_LISTED]]
    more = len(problems) - _MAX_LISTED
    return "\n".join([*listed, f"  … and {more} more"] if more > 0 else listed)
