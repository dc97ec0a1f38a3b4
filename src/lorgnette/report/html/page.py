"""The HTML report of a run: answers before and after, curves, facts, settings, in one file without requests.

    RunPage → write_run_page → report.html

Images are inline thumbnails, curves inline SVG. Knows nothing about where the page's numbers come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from lorgnette.metrics.answer_tables import AnswerTables
from lorgnette.metrics.labels import normalize_label
from lorgnette.metrics.score import ScoreRow
from lorgnette.metrics.tokenizers import normalize_whitespace
from lorgnette.report.html.answer_tables import build_answer_sections
from lorgnette.report.html.box_overlay import BoxLayer, Overlay, build_key, build_overlays, list_reference_layer
from lorgnette.report.html.charts import Curve, Table, build_charts, format_number
from lorgnette.report.html.inline_images import InlineImage, inline_images
from lorgnette.report.html.templates import compile_template, write_page
from lorgnette.report.verdict import MIN_CLOSER, Verdict
from lorgnette.types import PredictionRow

NUM_VISIBLE = 12
"""Rows shown at once; the others are folded, so that the curves are near."""
MIN_ALIKE = 0.5
"""Words that differ are marked in an answer that is at least as similar to a reference; in others nearly all differ."""
SIGNS = {"worked": "✓", "helped": "✓", "unchanged": "=", "harm": "✗", "unsure": "?"}
Facts = Sequence[tuple[str, str]]
"""(label, value)"""


@dataclass(frozen=True, slots=True)
class SampleHistory:
    """A held-out prompt during training. answers: (step, answer after it); step 0 is before the training."""

    row: PredictionRow
    answers: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class RunPage:
    """The page's contents.

    settings: may be nested. verdict: whether it worked. compared: what the answers before and after are. facts: (title,
    facts) of each group; stages: seconds. gains: how much closer to its references each row's answer is after training,
    if measured. trained_on: whether each row's images were trained on, if any were. sample_limit: the token limit of
    the samples, if it cut one. best: the curve that selects the best step, and that step. next_steps: (purpose,
    command). summary: one sentence; default: about the loss. problems: lines about the skipped rows. num_skipped: the
    number of these rows; default: one for each line. folders: absolute ones that paths on the page lose.
    """

    title: str
    settings: Mapping[str, object] = field(default_factory=dict)
    verdict: Verdict | None = None
    compared: Facts = ()
    facts: Sequence[tuple[str, Facts]] = ()
    stages: Facts = ()
    curves: Sequence[Curve] = ()
    best: tuple[str, float] | None = None
    rows: Sequence[PredictionRow] = ()
    problems: Sequence[str] = ()
    num_skipped: int = 0
    notes: Sequence[str] = ()
    next_steps: Facts = ()
    summary: str = ""
    scores: Sequence[ScoreRow] = ()
    tables: AnswerTables = field(default_factory=AnswerTables)
    gains: Sequence[float | None] = ()
    trained_on: Sequence[bool] = ()
    samples: Sequence[SampleHistory] = ()
    sample_limit: int | None = None
    folders: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class _Card:
    """A row on the page. words: its new answer, as (text, whether it differs from the reference). overlays: the boxes
    over each image; box_key: (style, whose they are)."""

    row: PredictionRow
    images: Sequence[InlineImage]
    is_trained_on: bool
    label: str
    is_better: bool
    words: Sequence[tuple[str, bool]]
    overlays: Sequence[Overlay | None] = ()
    box_key: Facts = ()


def prepare_run_page() -> None:
    """Compile the page's templates ahead: that is most of what `write_run_page` takes. Another thread may call it."""
    compile_template("page.html.j2")


def write_run_page(path: Path, page: RunPage) -> None:
    """Write the page. Raises ValueError unless gains and trained_on are empty or have one value per row."""
    images = inline_images(path for row in [*page.rows, *(s.row for s in page.samples)] for path in row.images)
    gains, trained_on = page.gains or [None] * len(page.rows), page.trained_on or [False] * len(page.rows)
    charts = build_charts(page.curves, page.best)
    cards = [
        _Card(
            row,
            [images[path] for path in row.images],
            is_trained_on,
            *_classify_answer(row, gain),
            mark_words(row),
            *_draw_boxes(row),
        )
        for row, gain, is_trained_on in zip(page.rows, gains, trained_on, strict=True)
    ]
    prompts = {row.prompt for row in page.rows}
    has_base = any(row.base is not None for row in page.rows)
    settings = flatten_settings(page.settings)
    answer_sections = build_answer_sections(page.tables, ["before", "after"])
    parts = [
        ("scores", "Scores", page.scores),
        *((section.id, section.title, section) for section in answer_sections),
        ("predictions", "Before and after" if has_base else "Predictions", cards),
        ("samples", "During training", page.samples),
        ("curves", "Curves", charts),
        ("next", "Next steps", page.next_steps),
        ("facts", "Facts", page.facts),
        ("problems", "Skipped rows", page.problems),
        ("settings", "Settings", settings),
    ]
    write_page(
        path,
        "page.html.j2",
        folders=page.folders,
        title=page.title,
        page=page,
        sign=SIGNS[page.verdict.kind] if page.verdict else "",
        summary=page.summary or _summarize_loss(page.curves),
        parts=[(id, name) for id, name, content in parts if content],
        moved=[score for score in page.scores if score.before != score.after],
        unmoved=[score for score in page.scores if score.before == score.after],
        answer_sections=answer_sections,
        score_table=_tabulate_scores(page.scores),
        prompt=prompts.pop() if len(prompts) == 1 else "",
        has_marks=any(differs for card in cards for _, differs in card.words),
        cards=cards[:NUM_VISIBLE],
        folded=cards[NUM_VISIBLE:],
        has_base=has_base,
        samples=[(sample, [images[path] for path in sample.row.images]) for sample in page.samples],
        charts=charts,
        data={"charts": [chart.script_data for chart in charts]},
        settings=settings,
    )


def _draw_boxes(row: PredictionRow) -> tuple[list[Overlay | None], list[tuple[str, str]]]:
    layers = [
        BoxLayer("before", "boxes2", row.base_boxes),
        BoxLayer("after", "boxes1", row.tuned_boxes),
        list_reference_layer(row.reference_boxes),
    ]
    return build_overlays(row.images, layers), build_key(layers)


def mark_words(row: PredictionRow) -> list[tuple[str, bool]]:
    """The new answer in pieces: (text, whether its words differ from those of the most similar reference).

    The pieces add up to the answer. Nothing is marked in an answer that has little in common with each reference.
    """
    answer = row.shown_tuned or ""
    words = answer.split(" ")
    matchers = [SequenceMatcher(None, text.split(" "), words, autojunk=False) for text in row.references]
    matcher = max(matchers, key=SequenceMatcher.ratio, default=None)
    if matcher is None or not MIN_ALIKE <= matcher.ratio() < 1:
        return [(answer, False)] if answer else []
    pieces: list[tuple[str, bool]] = []
    for kind, _, _, start, end in matcher.get_opcodes():
        text = " ".join(words[start:end])
        if text:
            pieces += [(" ", False)] * bool(pieces) + [(text, kind != "equal")]
    return pieces


def _tabulate_scores(scores: Sequence[ScoreRow]) -> Table:
    return Table(
        ["score", "before", "after", "difference"],
        [[score.name, score.before, score.after, score.difference] for score in scores],
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
    """(what became of the answer in a few words, whether it is better). Case, white space and a final full stop are no
    change."""
    if row.tuned is None:
        return "", False
    references = [normalize_label(text) for text in row.references]
    before, after = normalize_label(row.base or ""), normalize_label(row.tuned)
    if after in references:
        is_exact = normalize_whitespace(row.tuned) in map(normalize_whitespace, row.references)
        label = "matches the reference" if is_exact else "same words as the reference"
        return label, row.base is not None and before not in references
    if row.base is not None and after == before:
        return "unchanged", False
    if gain is None or abs(gain) < MIN_CLOSER:
        return "", False
    return ("closer to the reference", True) if gain > 0 else ("further from the reference", False)
