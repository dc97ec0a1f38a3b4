"""Summarizes the rows of a source: counts, problems, image sizes, answer lengths.

Reads text and image headers only. Knows nothing about file formats, tokens or models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from lorgnette.data.checks.problem_groups import format_problems
from lorgnette.data.checks.scan import ScanResult, scan
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

OnBadRow = Literal["error", "skip"]
_MAX_LISTED = 10


@dataclass(frozen=True, slots=True)
class AnswerLengths:
    """Lengths in characters."""

    shortest: int
    median: float
    mean: float
    longest: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """A source's rows in numbers. Images, sizes and lengths are those of the usable rows."""

    num_rows: int
    num_usable: int
    problems: tuple[Problem, ...]
    num_images: int
    """Distinct paths."""
    num_repeated_uses: int
    """Uses of an image beyond its first."""
    smallest_size: tuple[int, int] | None
    """(width, height) of the image with the fewest pixels; None without images."""
    largest_size: tuple[int, int] | None
    answer_lengths: AnswerLengths | None
    """None without usable rows."""
    num_boxes: int = 0
    """Boxes and points of the usable rows."""
    num_rows_with_boxes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sizes = {"smallest": self.smallest_size, "largest": self.largest_size}
        return {
            "rows": self.num_rows,
            "usable": self.num_usable,
            "problems": [{**asdict(problem), "source": str(problem.source)} for problem in self.problems],
            "images": self.num_images,
            "repeats": self.num_repeated_uses,
            "boxes": self.num_boxes,
            **{name: size and {"width": size[0], "height": size[1]} for name, size in sizes.items()},
            "answers": self.answer_lengths and asdict(self.answer_lengths),
        }


def check_rows(rows: Iterable[Example | Problem]) -> DataReport:
    """Scan all rows and summarize them."""
    return build_report(scan(rows))


def build_report(scan_result: ScanResult, examples: Iterable[Example] | None = None) -> DataReport:
    """examples: those of the scan in any order, if they are built already."""
    image_infos = scan_result.image_infos
    sizes = sorted({info.size for info in image_infos.iter_infos()}, key=lambda size: (size[0] * size[1], size))
    answers, num_boxes, num_uses = list[int](), list[int](), 0
    for example in scan_result.examples if examples is None else examples:
        answers += [len(turn.text) for turn in example.turns if turn.role == "assistant"]
        num_boxes.append(len(example.boxes))
        num_uses += len(example.images)
    return DataReport(
        num_rows=len(scan_result.examples) + len(scan_result.problems),
        num_usable=len(scan_result.examples),
        problems=tuple(scan_result.problems),
        num_images=len(image_infos),
        num_repeated_uses=num_uses - len(image_infos),
        smallest_size=sizes[0] if sizes else None,
        largest_size=sizes[-1] if sizes else None,
        answer_lengths=AnswerLengths(min(answers), median(answers), fmean(answers), max(answers)) if answers else None,
        num_boxes=sum(num_boxes),
        num_rows_with_boxes=sum(map(bool, num_boxes)),
    )


def load_usable(
    rows: Iterable[Example | Problem],
    *,
    on_bad_row: OnBadRow,
    source: Path | None = None,
    needs_answer: bool = True,
    keeps_shape: bool = False,
    on_rows: Callable[[int], None] = lambda count: None,
) -> ScanResult:
    """The usable rows, and the problems of those left out.

    Raises LorgnetteError if there are no usable rows, or, with on_bad_row="error", if any row has a problem.
    source: the file that the rows are from, for the error message. needs_answer: False for predictions. keeps_shape,
    on_rows: as in `scan`.
    """
    result = scan(rows, needs_answer=needs_answer, keeps_shape=keeps_shape, on_rows=on_rows)
    total = len(result.examples) + len(result.problems)
    if total == 0:
        raise LorgnetteError("no rows", where=str(source) if source else None, hint="name a data file with rows")
    if result.problems and (on_bad_row == "error" or not result.examples):
        raise build_refusal(result.problems, total)
    return result


def build_refusal(problems: Sequence[Problem], total: int) -> LorgnetteError:
    """The error that lists the rows because of which training does not start."""
    skip = ", or skip them: data.on_bad_row=skip (prepare: --on-bad-row skip)" if len(problems) < total else ""
    listed = "".join(f"  {line}\n" for line in format_problems(problems, _MAX_LISTED))
    return LorgnetteError(f"{len(problems)} of {total} rows cannot be used:\n{listed}", hint=f"fix them{skip}")
