"""The HTML page of `compare`: metrics with differences, style, curves, and every image with all answers.

    ComparisonPage → write_comparison_page → compare.html

Candidates are columns, in one order everywhere. The page's script sorts and filters; the page makes no request. Knows
nothing about where the answers come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.metrics.bootstrap import Difference
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.registry import METRICS, Metric
from lorgnette.metrics.report import MetricReport, Verdict, classify_difference, format_style_rows
from lorgnette.report.html.answer_tables import build_answer_sections
from lorgnette.report.html.charts import Chart
from lorgnette.report.html.inline_images import inline_images
from lorgnette.report.html.templates import write_page

DIGITS = 4
"""Of a single answer's value, in the page's data."""


@dataclass(frozen=True)
class ComparisonPage:
    """The page's contents.

    answers: [candidate][prompt], as people see them. settings: (name, value of every candidate). generations: how each
    candidate's answers were generated. trained_on: [candidate][prompt] whether the candidate was trained on the
    prompt's images; empty if unknown. overlap_summaries: the same in words for every candidate, if any was trained.
    """

    candidates: tuple[str, ...]
    source: Path
    prompts: Sequence[EvalPrompt]
    answers: Sequence[Sequence[str]]
    report: MetricReport
    charts: Sequence[Chart] = ()
    settings: Sequence[tuple[str, tuple[str, ...]]] = ()
    notes: Sequence[str] = ()
    generations: Sequence[str] = ()
    trained_on: Sequence[Sequence[bool]] = ()
    overlap_summaries: Sequence[str] = ()

    @property
    def summary(self) -> str:
        """The page in a sentence: the last candidate against the first, in the main metric."""
        count, name = len(self.prompts), self.report.main_metric
        summary = f"{count} {'question' if count == 1 else 'questions'}, {len(self.candidates)} answers each."
        for candidate, flags in zip(self.candidates, self.trained_on, strict=bool(self.trained_on)):
            summary += f" {candidate} was trained on {sum(flags)} of them." if any(flags) else ""
        if not name:
            return summary
        metric_index = self.report.metric_names.index(name)
        difference = self.report.differences[len(self.candidates) - 1, 0][metric_index]
        text, interval = _format_difference(difference)
        gains = [METRICS[name].sign * value for value in difference.per_example]
        return (
            f"{summary} In {name}, {self.candidates[-1]} differs from {self.candidates[0]} by "
            f"{text}{f' ({interval})' if interval else ''}: closer to the reference in "
            f"{sum(gain > 0 for gain in gains)}, further in {sum(gain < 0 for gain in gains)}."
        )

    def find_trained_on(self, index: int) -> list[str]:
        """The candidates that were trained on the images of a prompt."""
        flags = zip(self.candidates, self.trained_on, strict=bool(self.trained_on))
        return [name for name, by_prompt in flags if by_prompt and by_prompt[index]]


@dataclass(frozen=True, slots=True)
class _MetricRow:
    """A metric of all candidates.

    cells:  each candidate's value, its interval, and its differences from all others: (other, verdict, text, interval).
    values: [candidate][prompt], None for a prompt without references; empty if the metric is undefined.
    """

    name: str
    metric: Metric
    cells: list[tuple[str, str, list[tuple[int, Verdict, str, str]]]]
    values: list[list[float | None]]
    note: str


def write_comparison_page(path: Path, page: ComparisonPage) -> None:
    """Write the page, replacing an old one."""
    images = inline_images(image for prompt in page.prompts for image in prompt.image_paths)
    answers_by_prompt = zip(page.prompts, zip(*page.answers, strict=True), strict=True)
    num_metrics = len(page.report.metric_names) if page.report.scores else 0
    metrics = [_build_metric_row(page.report, i, len(page.prompts)) for i in range(num_metrics)]
    sortable = [row for row in metrics if row.values]
    write_page(
        path,
        "comparison.html.j2",
        title="Side by side",
        summary=page.summary,
        page=page,
        metrics=metrics,
        sortable=sortable,
        cards=[
            (prompt, tuple(images[image] for image in prompt.image_paths), answers, page.find_trained_on(i))
            for i, (prompt, answers) in enumerate(answers_by_prompt)
        ],
        answer_sections=build_answer_sections(page.report.tables, page.candidates),
        style=format_style_rows(page.report),
        differing=[*page.settings, *_list_differing_generations(page)],
        charts=page.charts,
        data={
            "charts": [chart.script_data for chart in page.charts],
            "metrics": [{"sign": row.metric.sign, "values": row.values} for row in sortable],
        },
    )


def _list_differing_generations(page: ComparisonPage) -> list[tuple[str, tuple[str, ...]]]:
    return [("answers", tuple(page.generations))] if len(set(page.generations)) > 1 else []


def _build_metric_row(report: MetricReport, index: int, num_prompts: int) -> _MetricRow:
    name, scores = report.metric_names[index], [scores[index] for scores in report.scores]
    is_defined = all(score.value is not None for score in scores)
    cells: list[tuple[str, str, list[tuple[int, Verdict, str, str]]]] = []
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
    value = _format_signed(difference.value)
    if difference.interval is None:
        return value, ""
    return f"{value}, p {difference.p_value:.3f}", " to ".join(map(_format_signed, difference.interval))


def _format_signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
