"""One HTML file that shows a run: before and after, curves, facts, settings. It opens anywhere and asks for nothing.

    Page → write_page → report.html

Pictures lie in it as thumbnails, curves as drawn lines; a policy in its head forbids every request. Knows nothing
about where a page's numbers come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorgnette.io.atomic import write_text
from lorgnette.report.html.charts import Curve, build_charts, format_number
from lorgnette.report.html.inline_images import InlineImage, inline_images
from lorgnette.report.html.templates import render_template
from lorgnette.report.predictions import PredictionRow

NUM_VISIBLE = 12
"""Rows in sight at once; the others are folded away, so that the curves are not far."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """What is measured, its value before and after as shown, whether after is better, and what a reader must know."""

    name: str
    before: str
    after: str
    is_better: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class SampleHistory:
    """A held-out picture over the training. frames: (step, what the model said after it); 0 is the untuned model."""

    row: PredictionRow
    answers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class RunPage:
    """facts: (label, value) of the run. scores: of the model.

    settings may be nested. gains: by how much each row's answer came closer to its references, where that is measured.
    next_steps are commands to copy. summary: one sentence; without it the loss makes one.
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
    scores: Sequence[ScoreRow] = ()
    gains: Sequence[float | None] = ()
    samples: Sequence[SampleHistory] = ()


@dataclass(frozen=True, slots=True)
class _Card:
    row: PredictionRow
    images: tuple[InlineImage, ...]
    verdict: str
    is_better: bool


def write_run_page(path: Path, page: RunPage) -> None:
    """Raises ValueError where there are gains, but not one for every row."""
    drawn = build_charts(page.curves)
    rows = [*page.rows, *(strip.row for strip in page.samples)]
    shown = inline_images(path for row in rows for path in row.images)
    gains = page.gains or [None] * len(page.rows)
    cards = [
        _Card(row, tuple(shown[path] for path in row.images), *_classify_answer(row, gain))
        for row, gain in zip(page.rows, gains, strict=True)
    ]
    write_text(
        path,
        render_template(
            "page.html.j2",
            title=page.title,
            page=page,
            summary=page.summary or _summarize_loss(page.curves),
            cards=cards[:NUM_VISIBLE],
            folded=cards[NUM_VISIBLE:],
            has_base=any(row.base is not None for row in page.rows),
            strips=[(strip, tuple(shown[path] for path in strip.row.images)) for strip in page.samples],
            charts=drawn,
            data={"charts": [chart.script_data for chart in drawn]},
            settings=flatten_settings(page.settings),
        ),
    )


def flatten_settings(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names with the values as one would type them."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += flatten_settings(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _format_value(value)))
    return rows


def _format_value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_format_value(item) for item in value) + "]"
    return "{}" if value == {} else str(value)


def _summarize_loss(curves: Sequence[Curve]) -> str:
    losses = next((curve.points for curve in curves if curve.name == "loss"), [])
    if len(losses) < 2:
        return ""
    return f"{format_number(losses[-1][0])} steps; loss {format_number(losses[0][1])} → {format_number(losses[-1][1])}."


def _classify_answer(row: PredictionRow, gain: float | None) -> tuple[str, bool]:
    """What a glance should catch, and whether it is for the better. Case, spaces and a full stop do not count."""
    if row.tuned is None:
        return "", False
    goals = [_normalize_answer(text) for text in row.references]
    before, after = _normalize_answer(row.base or ""), _normalize_answer(row.tuned)
    if after in goals:
        return "matches the reference", row.base is not None and before not in goals
    if row.base is not None and after == before:
        return "unchanged", False
    if not gain:
        return "", False
    return ("closer to the reference", True) if gain > 0 else ("further from the reference", False)


def _normalize_answer(text: str) -> str:
    return " ".join(text.split()).rstrip(".。").casefold()
