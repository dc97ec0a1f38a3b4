"""The HTML page of `compare`: metrics with differences, style, curves, and every image with all answers.

    ComparisonPage → write_comparison_page → compare.html

Candidates are columns, in one order everywhere. The page's script sorts and filters; the page makes no request. Knows
nothing about where the numbers come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorgnette.io.atomic import write_text
from lorgnette.report.html.charts import Chart
from lorgnette.report.html.inline_images import inline_images
from lorgnette.report.html.templates import render_template

DIGITS = 4
"""Of a single answer's value, in the page's data."""


@dataclass(frozen=True, slots=True)
class CellDifference:
    """A candidate minus the candidate `baseline`, as text: the difference with p, and its interval."""

    baseline: int
    text: str
    interval: str
    verdict: Literal["better", "worse", "unsure"]


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """A candidate's value with its interval, and its differences from all other candidates."""

    value: str
    interval: str = ""
    differences: tuple[CellDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric of all candidates.

    per_answer: [candidate][card] values, None for a card without references; empty if the metric is undefined, and note
    says why.
    """

    name: str
    description: str
    better: Literal["higher", "lower"]
    cells: tuple[ScoreCell, ...]
    per_answer: tuple[tuple[float | None, ...], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ComparisonCard:
    """One prompt with its images, its references, and every candidate's answer."""

    id: str
    images: tuple[Path, ...]
    prompt: str
    references: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonPage:
    """The page's contents.

    style: (statistic, value of every candidate and of the references). settings: (name, value of every candidate).
    sort_metric: the metric selected first.
    """

    title: str
    summary: str
    candidates: tuple[str, ...]
    cards: Sequence[ComparisonCard]
    metrics: Sequence[MetricRow] = ()
    sort_metric: str = ""
    style: Sequence[tuple[str, tuple[str, ...]]] = ()
    charts: Sequence[Chart] = ()
    settings: Sequence[tuple[str, tuple[str, ...]]] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def write_comparison_page(path: Path, page: ComparisonPage) -> None:
    """Write the page, replacing an old one."""
    images = inline_images(image for card in page.cards for image in card.images)
    sortable = [row for row in page.metrics if row.per_answer]
    script_data = {"charts": [chart.script_data for chart in page.charts], "metrics": list(map(_build_data, sortable))}
    html = render_template(
        "comparison.html.j2",
        title=page.title,
        summary=page.summary,
        page=page,
        sortable=sortable,
        cards=[(card, tuple(images[path] for path in card.images)) for card in page.cards],
        charts=page.charts,
        data=script_data,
    )
    write_text(path, html)


def _build_data(row: MetricRow) -> dict[str, Any]:
    """The metric for the page's script."""
    values = [[value if value is None else round(value, DIGITS) for value in column] for column in row.per_answer]
    return {"name": row.name, "sign": 1 if row.better == "higher" else -1, "values": values}
