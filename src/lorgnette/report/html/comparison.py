"""One HTML file that sets answers side by side: metrics with what lies between them, style, curves, and every picture.

    Comparison → write_comparison → compare.html

Sides are those that answered, in the order of their columns. The page's script sorts and filters; a policy in its head
forbids every request. Knows nothing about where the numbers come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """What lies between a side and the side `over`: the difference with p, and its interval, as text."""

    baseline: int
    text: str
    interval: str
    verdict: Literal["better", "worse", "unsure"]


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """A side's value with its interval, and the gaps to every other side."""

    value: str
    interval: str = ""
    differences: tuple[CellDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """each: [side][card] value of a single answer, None where the card has no reference; empty where the metric means
    nothing here, and note says why."""

    name: str
    description: str
    better: Literal["higher", "lower"]
    cells: tuple[ScoreCell, ...]
    per_answer: tuple[tuple[float | None, ...], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class ComparisonCard:
    """One picture and prompt, the references, and an answer from every side."""

    id: str
    images: tuple[Path, ...]
    prompt: str
    references: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonPage:
    """style: (what, a value for every side and one for the references). settings: those that differ, (name, a value
    for every side). chosen: the metric by which cards are sorted at first."""

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
    notes: Sequence[str] = field(default_factory=tuple)


def write_comparison_page(path: Path, page: ComparisonPage) -> None:
    """Write the page; what stood there is replaced."""
    shown = inline_images(picture for card in page.cards for picture in card.images)
    measured = [row for row in page.metrics if row.per_answer]
    write_text(
        path,
        render_template(
            "comparison.html.j2",
            title=page.title,
            summary=page.summary,
            page=page,
            measured=measured,
            cards=[(card, tuple(shown[picture] for picture in card.images)) for card in page.cards],
            charts=page.charts,
            data={
                "charts": [chart.script_data for chart in page.charts],
                "metrics": [_build_script_data(row) for row in measured],
            },
        ),
    )


def _build_script_data(row: MetricRow) -> dict[str, Any]:
    """What the page's script sorts by."""
    rounded = [[value if value is None else round(value, DIGITS) for value in side] for side in row.per_answer]
    return {"name": row.name, "sign": 1 if row.better == "higher" else -1, "each": rounded}
