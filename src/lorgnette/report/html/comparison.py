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
from lorgnette.report.html.inline_images import embedded
from lorgnette.report.html.templates import rendered

DIGITS = 4
"""Of a single answer's value, in the page's data."""


@dataclass(frozen=True, slots=True)
class Gap:
    """What lies between a side and the side `over`: the difference with p, and its interval, as text."""

    over: int
    text: str
    interval: str
    verdict: Literal["better", "worse", "unsure"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A side's value with its interval, and the gaps to every other side."""

    value: str
    interval: str = ""
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricRow:
    """each: [side][card] value of a single answer, None where the card has no reference; empty where the metric means
    nothing here, and note says why."""

    name: str
    meaning: str
    better: Literal["higher", "lower"]
    cells: tuple[Cell, ...]
    each: tuple[tuple[float | None, ...], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One picture and prompt, the references, and an answer from every side."""

    id: str
    pictures: tuple[Path, ...]
    prompt: str
    references: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """style: (what, a value for every side and one for the references). settings: those that differ, (name, a value
    for every side). chosen: the metric by which cards are sorted at first."""

    title: str
    summary: str
    sides: tuple[str, ...]
    cards: Sequence[Card]
    metrics: Sequence[MetricRow] = ()
    chosen: str = ""
    style: Sequence[tuple[str, tuple[str, ...]]] = ()
    charts: Sequence[Chart] = ()
    settings: Sequence[tuple[str, tuple[str, ...]]] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def write_comparison(path: Path, page: Comparison) -> None:
    """Write the page; what stood there is replaced."""
    shown = embedded(picture for card in page.cards for picture in card.pictures)
    measured = [row for row in page.metrics if row.each]
    write_text(
        path,
        rendered(
            "comparison.html.j2",
            title=page.title,
            summary=page.summary,
            page=page,
            measured=measured,
            cards=[(card, tuple(shown[picture] for picture in card.pictures)) for card in page.cards],
            charts=page.charts,
            data={"charts": [chart.data for chart in page.charts], "metrics": [_data(row) for row in measured]},
        ),
    )


def _data(row: MetricRow) -> dict[str, Any]:
    """What the page's script sorts by."""
    rounded = [[value if value is None else round(value, DIGITS) for value in side] for side in row.each]
    return {"name": row.name, "sign": 1 if row.better == "higher" else -1, "each": rounded}
