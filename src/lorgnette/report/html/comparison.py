"""The HTML page of `compare`: metrics with differences, style, curves, and every image with all answers.

    ComparisonPage → write_comparison_page → compare.html

Candidates are columns, in one order everywhere. The page's script sorts and filters; the page makes no request. Knows
nothing about where the answers come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.metrics.bootstrap import Difference
from lorgnette.metrics.box_answers import Boxes
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.registry import METRICS, Metric
from lorgnette.metrics.report import (
    MetricReport,
    classify_difference,
    format_style_rows,
    format_with_sign,
)
from lorgnette.metrics.report import Verdict as Meaning
from lorgnette.report.html.answer_tables import build_answer_sections
from lorgnette.report.html.box_overlay import BoxLayer, build_key, build_overlays, list_reference_layer
from lorgnette.report.html.charts import Chart, Table
from lorgnette.report.html.inline_images import inline_images
from lorgnette.report.html.page import SIGNS
from lorgnette.report.html.templates import write_page
from lorgnette.report.verdict import Verdict

DIGITS = 4
"""Of a single answer's value, in the page's data."""


@dataclass(frozen=True)
class ComparisonPage:
    """The page's contents.

    answers: [candidate][prompt], as people see them. boxes: of the answers, in pixels. verdict: which is better.
    compared: (what, its value for every candidate). facts: (title, facts) of each group. settings: (name, value of
    every candidate). generations: how each candidate's answers were generated. trained_on: [candidate][prompt] whether
    the candidate was trained on the prompt's images; empty if unknown. overlap_summaries: the same in words for every
    candidate, if any was trained. next_steps: (purpose, command). folders: as in `write_page`.
    """

    candidates: tuple[str, ...]
    prompts: Sequence[EvalPrompt]
    answers: Sequence[Sequence[str]]
    report: MetricReport
    boxes: Sequence[Sequence[Boxes]] = ()
    verdict: Verdict | None = None
    compared: Sequence[tuple[str, tuple[str, ...]]] = ()
    facts: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    charts: Sequence[Chart] = ()
    settings: Sequence[tuple[str, tuple[str, ...]]] = ()
    notes: Sequence[str] = ()
    generations: Sequence[str] = ()
    trained_on: Sequence[Sequence[bool]] = ()
    overlap_summaries: Sequence[str] = ()
    next_steps: Sequence[tuple[str, str]] = ()
    folders: Sequence[Path] = ()

    def list_box_layers(self, index: int) -> list[BoxLayer]:
        """The boxes about a prompt's images: those of each candidate, then those of its references."""
        own = zip(self.candidates, self.boxes, strict=bool(self.boxes))
        layers = [BoxLayer(name, f"boxes{number % 6 + 1}", boxes[index]) for number, (name, boxes) in enumerate(own)]
        return [*layers, list_reference_layer(self.prompts[index].reference_boxes)]

    def find_trained_on(self, index: int) -> list[str]:
        """The candidates that were trained on the images of a prompt."""
        flags = zip(self.candidates, self.trained_on, strict=bool(self.trained_on))
        return [name for name, by_prompt in flags if by_prompt and by_prompt[index]]


@dataclass(frozen=True, slots=True)
class _MetricRow:
    """A metric of all candidates.

    cells:  each candidate's value, its interval, and its differences from all others: (other, meaning, text, interval).
    values: [candidate][prompt], None for a prompt without references; empty if the metric is undefined.
    """

    name: str
    metric: Metric
    cells: list[tuple[str, str, list[tuple[int, Meaning, str, str]]]]
    values: list[list[float | None]]
    note: str


def write_comparison_page(path: Path, page: ComparisonPage) -> None:
    """Write the page, replacing an old one."""
    images = inline_images(image for prompt in page.prompts for image in prompt.image_paths)
    answers_by_prompt = zip(page.prompts, zip(*page.answers, strict=True), strict=True)
    num_metrics = len(page.report.metric_names) if page.report.scores else 0
    metrics = [_build_metric_row(page.report, i, len(page.prompts)) for i in range(num_metrics)]
    sortable = [row for row in metrics if row.values]
    style, differing = format_style_rows(page.report), [*page.settings, *_list_differing_generations(page)]
    texts = {prompt.text for prompt in page.prompts}
    sections = build_answer_sections(page.report.tables, page.candidates)
    parts = [
        ("notes", "Notes", page.notes),
        ("scores", "Scores", metrics),
        *((section.id, section.title, section) for section in sections),
        ("style", "Style", style),
        ("curves", "Curves", page.charts),
        ("settings", "Settings that differ", differing),
        ("next", "Next steps", page.next_steps),
        ("facts", "Facts", page.facts),
        ("answers", "Answers", page.prompts),
    ]
    write_page(
        path,
        "comparison.html.j2",
        folders=page.folders,
        title=", ".join(page.candidates),
        summary="",
        sign=SIGNS[page.verdict.kind] if page.verdict else "",
        parts=[(id, name) for id, name, content in parts if content],
        page=page,
        common_prompt=texts.pop() if len(texts) == 1 else "",
        score_table=_tabulate_scores(page),
        metrics=metrics,
        sortable=sortable,
        cards=[
            (
                prompt,
                tuple(images[image] for image in prompt.image_paths),
                answers,
                page.find_trained_on(i),
                build_overlays(prompt.image_paths, layers),
                build_key(layers),
            )
            for i, (prompt, answers) in enumerate(answers_by_prompt)
            for layers in [page.list_box_layers(i)]
        ],
        answer_sections=sections,
        style=style,
        style_table=Table(["", *page.candidates, "references"], [[name, *values] for name, values in style]),
        differing=differing,
        charts=page.charts,
        data={
            "charts": [chart.script_data for chart in page.charts],
            "metrics": [{"sign": row.metric.sign, "values": row.values} for row in sortable],
        },
    )


def _tabulate_scores(page: ComparisonPage) -> Table:
    """The scores as numbers that other programs read: a row for each metric, candidate and baseline."""
    own_names = ("metric", "candidate", "value", "low", "high")
    header = [*own_names, "baseline", "difference", "difference low", "difference high", "p"]
    rows, report = [], page.report
    for index, metric in enumerate(report.metric_names if report.scores else ()):
        for a, scores in enumerate(report.scores):
            score = scores[index]
            own = [metric, page.candidates[a], *map(_format_number, (score.value, *(score.interval or (None, None))))]
            others = [b for b in range(len(report.scores)) if b != a]
            for b in others:
                change = report.differences[a, b][index]
                numbers = change.value, *(change.shown_interval or (None, None)), change.p_value
                rows.append([*own, page.candidates[b], *map(_format_number, numbers)])
    return Table(header, rows)


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _list_differing_generations(page: ComparisonPage) -> list[tuple[str, tuple[str, ...]]]:
    return [("answers", tuple(page.generations))] if len(set(page.generations)) > 1 else []


def _build_metric_row(report: MetricReport, index: int, num_prompts: int) -> _MetricRow:
    name, scores = report.metric_names[index], [scores[index] for scores in report.scores]
    is_defined = all(score.value is not None for score in scores)
    cells: list[tuple[str, str, list[tuple[int, Meaning, str, str]]]] = []
    values: list[list[float | None]] = []
    for a, score in enumerate(scores):
        others = [b for b in range(len(scores)) if is_defined and b != a]
        differences = [(b, report.differences[a, b][index]) for b in others]
        value = "–" if score.value is None else f"{score.value:.3f}"
        interval = f"{score.interval[0]:.3f} to {score.interval[1]:.3f}" if score.interval else ""
        rows = [(b, classify_difference(d), *_format_difference(d)) for b, d in differences]
        cells.append((value, interval, rows))
        if is_defined:
            by_prompt = dict(zip(report.scored_indices, score.per_example, strict=True))
            values.append([round(by_prompt[i], DIGITS) if i in by_prompt else None for i in range(num_prompts)])
    return _MetricRow(name, METRICS[name], cells, values, next((score.note for score in scores if score.note), ""))


def _format_difference(difference: Difference) -> tuple[str, str]:
    """The difference with its p-value, and its interval."""
    assert difference.value is not None
    value = format_with_sign(difference.value)
    if difference.p_value is not None:
        value += f", p {difference.p_value:.3f}"
    return value, " to ".join(map(format_with_sign, difference.shown_interval or ()))
