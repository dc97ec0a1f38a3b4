"""One HTML file that shows a run: before and after, curves, facts, settings. It opens anywhere and asks for nothing.

    Page → write_page → report.html

Pictures lie in it as thumbnails, curves as drawn lines; a policy in its head forbids every request. Knows nothing
about where a page's numbers come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorgnette.report.chart import Chart, Curve, charts, figure
from lorgnette.report.html import Shown, write_html
from lorgnette.report.predictions import PredictionRow

PICTURE_BYTES = 16_000_000
"""For all pictures together, before base64 makes them a third larger."""
MOST_BYTES, FEWEST_BYTES = 90_000, 4_000
"""Of one picture."""
SHOWN = 60
"""Rows in sight at once; the others are folded away."""

Score = tuple[str, str, str]
"""What is measured, its value before and its value after."""


@dataclass(frozen=True)
class Page:
    """facts: (label, value) of the run. scores: of the model.

    settings may be nested. next_steps are commands to copy. summary: one sentence; without it the loss makes one.
    """

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    rows: Sequence[PredictionRow] = ()
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    next_steps: Sequence[str] = ()
    summary: str = ""
    scores: Sequence[Score] = ()


@dataclass(frozen=True, slots=True)
class _Card:
    row: PredictionRow
    pictures: tuple[Shown, ...]
    verdict: str


def write_page(path: Path, page: Page) -> None:
    drawn = charts(page.curves)
    cards = _cards(page.rows)
    write_html(
        path,
        "page.html.j2",
        title=page.title,
        lead=page.summary or _summary(page.curves),
        data=[_data(chart) for chart in drawn],
        page=page,
        cards=cards[:SHOWN],
        folded=cards[SHOWN:],
        has_base=any(row.base is not None for row in page.rows),
        charts=drawn,
        settings=flattened(page.settings),
    )


def flattened(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names with the values as one would type them."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += flattened(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _typed(value)))
    return rows


def _typed(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_typed(item) for item in value) + "]"
    return "{}" if value == {} else str(value)


def _summary(curves: Sequence[Curve]) -> str:
    losses = next((curve.points for curve in curves if curve.name == "loss"), [])
    if len(losses) < 2:
        return ""
    return f"{figure(losses[-1][0])} steps; loss {figure(losses[0][1])} → {figure(losses[-1][1])}."


def _cards(rows: Sequence[PredictionRow]) -> list[_Card]:
    places = list(dict.fromkeys(path for row in rows for path in row.pictures))
    budget = min(MOST_BYTES, max(FEWEST_BYTES, PICTURE_BYTES // max(1, sum(len(row.pictures) for row in rows))))
    shown = {path: Shown.of(path, budget) for path in places}
    return [_Card(row, tuple(shown[path] for path in row.pictures), _verdict(row)) for row in rows]


def _verdict(row: PredictionRow) -> str:
    """What a glance should catch. Case, spaces and a full stop do not count."""
    if row.tuned is None:
        return ""
    if row.reference and _bare(row.tuned) == _bare(row.reference):
        return "matches the reference"
    if row.base is not None and _bare(row.tuned) == _bare(row.base):
        return "unchanged"
    return ""


def _bare(text: str) -> str:
    return " ".join(text.split()).rstrip(".。").casefold()


def _data(chart: Chart) -> dict[str, Any]:
    """What the crosshair reads."""
    return {
        "x": chart.x_range,
        "y": chart.y_range,
        "lines": [{"name": line.name, "colour": line.colour, "points": line.points} for line in chart.lines],
    }
