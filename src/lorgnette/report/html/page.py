"""The HTML report of a run: answers before and after, curves, facts, settings, in one file without requests.

    RunPage → write_run_page → report.html

Images are inline thumbnails, curves inline SVG. Knows nothing about where the page's numbers come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorgnette.metrics.answer_tables import AnswerTables
from lorgnette.metrics.score import ScoreRow
from lorgnette.report.html.answer_tables import build_answer_sections
from lorgnette.report.html.charts import Curve, build_charts, format_number
from lorgnette.report.html.inline_images import inline_images
from lorgnette.report.html.templates import write_page
from lorgnette.types import PredictionRow

NUM_VISIBLE = 12
"""Rows shown at once; the others are folded, so that the curves are near."""


@dataclass(frozen=True, slots=True)
class SampleHistory:
    """A held-out prompt during training. answers: (step, answer after it); step 0 is the base model."""

    row: PredictionRow
    answers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class RunPage:
    """The page's contents.

    settings: may be nested. facts: (label, value). gains: how much closer to its references each row's answer is after
    training, if measured. trained_on: whether each row's images were trained on, if any were. sample_limit: the token
    limit of the samples, if it cut one. next_steps: commands to copy. summary: one sentence; default: about the loss.
    problems: lines about the skipped rows. num_skipped: the number of these rows; default: one for each line.
    """

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    rows: Sequence[PredictionRow] = ()
    problems: Sequence[str] = ()
    num_skipped: int = 0
    notes: Sequence[str] = ()
    next_steps: Sequence[str] = ()
    summary: str = ""
    scores: Sequence[ScoreRow] = ()
    tables: AnswerTables = field(default_factory=AnswerTables)
    gains: Sequence[float | None] = ()
    trained_on: Sequence[bool] = ()
    samples: Sequence[SampleHistory] = ()
    sample_limit: int | None = None


def write_run_page(path: Path, page: RunPage) -> None:
    """Write the page. Raises ValueError unless gains and trained_on are empty or have one value per row."""
    images = inline_images(path for row in [*page.rows, *(s.row for s in page.samples)] for path in row.images)
    gains, trained_on = page.gains or [None] * len(page.rows), page.trained_on or [False] * len(page.rows)
    charts = build_charts(page.curves)
    cards = [
        (row, [images[path] for path in row.images], is_trained_on, *_classify_answer(row, gain))
        for row, gain, is_trained_on in zip(page.rows, gains, trained_on, strict=True)
    ]
    write_page(
        path,
        "page.html.j2",
        title=page.title,
        page=page,
        summary=page.summary or _summarize_loss(page.curves),
        answer_sections=build_answer_sections(page.tables, ["before", "after"]),
        cards=cards[:NUM_VISIBLE],
        folded=cards[NUM_VISIBLE:],
        has_base=any(row.base is not None for row in page.rows),
        samples=[(sample, [images[path] for path in sample.row.images]) for sample in page.samples],
        charts=charts,
        data={"charts": [chart.script_data for chart in charts]},
        settings=flatten_settings(page.settings),
    )


def flatten_settings(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value as typed on the command line)."""
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
    points = next((curve.points for curve in curves if curve.name == "loss"), [])
    if len(points) < 2:
        return ""
    return f"{format_number(points[-1][0])} steps; loss {format_number(points[0][1])} → {format_number(points[-1][1])}."


def _classify_answer(row: PredictionRow, gain: float | None) -> tuple[str, bool]:
    """(verdict in a few words, whether it is better). Case, white space and a final full stop are ignored."""
    if row.tuned is None:
        return "", False
    references = [_normalize_answer(text) for text in row.references]
    before, after = _normalize_answer(row.base or ""), _normalize_answer(row.tuned)
    if after in references:
        return "matches the reference", row.base is not None and before not in references
    if row.base is not None and after == before:
        return "unchanged", False
    if not gain:
        return "", False
    return ("closer to the reference", True) if gain > 0 else ("further from the reference", False)


def _normalize_answer(text: str) -> str:
    return " ".join(text.split()).rstrip(".。").casefold()
