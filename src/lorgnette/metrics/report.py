"""Answers to the same prompts in numbers: metrics, differences between candidates, style; before and after training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from lorgnette.metrics.answer_tables import AnswerTables, count_answers
from lorgnette.metrics.bootstrap import Difference, compare_tallies
from lorgnette.metrics.box_answers import Boxes, list_known_boxes
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.own_metric import MetricFunction, resolve_metric_names
from lorgnette.metrics.registry import (
    METRICS,
    build_scores,
    compare_answers,
    compute_tallies,
    expand_metric_names,
    select_sample_metric,
)
from lorgnette.metrics.score import Score, ScoreRow
from lorgnette.metrics.style import Style, compute_style
from lorgnette.metrics.tokenizers import tokenize_latex, tokenize_words
from lorgnette.types import PredictionRow

Verdict = Literal["better", "worse", "unsure"]
MAIN_METRICS = ("CIDEr-D", "latex-edit-distance", "ROUGE-L")
"""The metric that answers are first sorted by: the first of these that is defined."""
SIGNIFICANCE_LEVEL = 0.05
"""A difference with a p-value at or above this level may be chance."""

SCORE_TABLES: dict[str, Callable[[Sequence[PredictionRow]], list[ScoreRow]]] = {}
"""Names in predict.metrics that stand for these rows in the scores before and after training."""


@dataclass(frozen=True)
class MetricReport:
    """The metrics of several candidates.

    scored_indices: of the prompts with references. scores: [candidate][metric] over these. differences: (a, b) → for
    every metric, candidate a minus candidate b. tables: over the same prompts.
    """

    metric_names: tuple[str, ...]
    scored_indices: tuple[int, ...]
    scores: tuple[tuple[Score, ...], ...]
    differences: dict[tuple[int, int], tuple[Difference, ...]]
    styles: tuple[Style, ...]
    reference_style: Style | None
    tables: AnswerTables = field(default_factory=AnswerTables)

    @property
    def main_metric(self) -> str:
        """A metric's name; empty if none is defined."""
        defined = [score.name for score in self.scores[0] if score.value is not None] if self.scores else []
        return next((name for name in MAIN_METRICS if name in defined), defined[0] if defined else "")


def compute_report(
    metric_names: Sequence[str],
    prompts: Sequence[EvalPrompt],
    answers: Sequence[Sequence[str]],
    boxes: Sequence[Sequence[Boxes]] = (),
) -> MetricReport:
    """The report on answers [candidate][prompt]. Without references it has style only. boxes: those of the answers that
    are known in pixels."""
    scored_indices = tuple(i for i, prompt in enumerate(prompts) if prompt.references)
    references = [prompts[i].references for i in scored_indices]
    images = [prompts[i].image_paths for i in scored_indices]
    scored_answers = [[texts[i] for i in scored_indices] for texts in answers] if scored_indices else []
    boxes = boxes or [[()] * len(prompts)] * len(answers)
    tallies = [
        compute_tallies(
            metric_names, texts, references, images, [(own[i], prompts[i].reference_boxes) for i in scored_indices]
        )
        for texts, own in zip(scored_answers, boxes, strict=False)
    ]
    differences: dict[tuple[int, int], tuple[Difference, ...]] = {}
    for b, a in combinations(range(len(tallies)), 2):
        rows = tuple(compare_tallies(name, tallies[b][name], tallies[a][name]) for name in metric_names)
        differences[a, b], differences[b, a] = rows, tuple(row.negate() for row in rows)
    is_latex = bool(metric_names) and all(METRICS[name].tokenize is tokenize_latex for name in metric_names)
    tokenize = tokenize_latex if is_latex else tokenize_words
    return MetricReport(
        metric_names=tuple(metric_names),
        scored_indices=scored_indices,
        scores=tuple(tuple(build_scores(tally)) for tally in tallies),
        differences=differences,
        styles=tuple(compute_style(texts, tokenize) for texts in answers),
        reference_style=compute_style([text for texts in references for text in texts], tokenize)
        if scored_indices
        else None,
        tables=count_answers(metric_names, scored_answers, references),
    )


def count_before_after(
    rows: Sequence[PredictionRow], names: Iterable[str], known_labels: Iterable[str] = ()
) -> AnswerTables:
    """The tables of the answers before and after training, of the rows that have references and both."""
    rows = _select_scored_rows(rows)
    if not rows:
        return AnswerTables()
    answers = [[row.base or "" for row in rows], [row.tuned or "" for row in rows]]
    names = expand_metric_names(name for name in names if name not in SCORE_TABLES)
    return count_answers(names, answers, [row.references for row in rows], known_labels)


def classify_difference(difference: Difference) -> Verdict:
    """Significant only if the interval excludes 0 and the p-value is low. The bootstrap interval of a few examples is
    too narrow, while their p-value is at least about 2 / 2**n. A name that is no metric counts something good."""
    interval, p_value = difference.interval, difference.p_value
    if interval is None or p_value is None or p_value >= SIGNIFICANCE_LEVEL or interval[0] <= 0 <= interval[1]:
        return "unsure"
    sign = METRICS[difference.name].sign if difference.name in METRICS else 1
    return "better" if sign * interval[0] > 0 else "worse"


def format_with_sign(value: float, digits: int = 3) -> str:
    """A difference with its sign: `+0.120`, `−0.031`, `0.000`."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def format_difference(difference: Difference, scale: float = 1.0, digits: int = 3) -> str:
    """The difference with its interval, both times `scale`; "" if the metric is undefined. Where all examples differ
    alike, resampling says nothing, and there is no interval."""
    if difference.value is None:
        return ""
    value, *interval = (
        format_with_sign(scale * number, digits) for number in (difference.value, *(difference.shown_interval or ()))
    )
    return value + (f" ({interval[0]} to {interval[1]})" if len(set(interval)) > 1 else "")


def format_score(score: Score) -> str:
    """The value with its interval."""
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.interval[0]:.3f}–{score.interval[1]:.3f})"


def format_style_rows(report: MetricReport) -> list[tuple[str, tuple[str, ...]]]:
    """(statistic, its value of every candidate and of the references)."""
    unit = report.styles[0].unit

    def format_first_words(style: Style) -> str:
        return ", ".join(f"{word} {_format_percent(share)}" for word, share in style.first_words)

    formats: dict[str, Callable[[Style], str]] = {
        f"{unit} per answer": lambda style: f"{style.mean_words:.1f}",
        f"{unit}, 5 to 95 %": lambda style: f"{style.words_range[0]:.0f} to {style.words_range[1]:.0f}",
        "characters per answer": lambda style: f"{style.mean_characters:.0f}",
        "sentences per answer": lambda style: f"{style.mean_sentences:.1f}",
        f"distinct {unit}": lambda style: str(style.vocabulary),
        "first words": format_first_words,
        "end with a full stop": lambda style: _format_percent(style.full_stop_share),
        "repeat a sentence": lambda style: _format_percent(style.repeated_sentence_share),
        "duplicates": lambda style: _format_percent(style.duplicate_share),
        "empty": lambda style: _format_percent(style.empty_share),
        "answers": lambda style: str(style.num_texts),
    }
    styles = [*report.styles, report.reference_style]
    return [(name, tuple(to_text(style) if style else "–" for style in styles)) for name, to_text in formats.items()]


def _format_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def parse_metric_names(metrics: str | Iterable[str | MetricFunction] | None, default: Sequence[str]) -> tuple[str, ...]:
    """The metrics of `--metrics`: names and groups, separated by commas, or a list with functions of the user. Raises
    UsageError for an unknown name."""
    return tuple(default) if metrics is None else expand_metric_names(resolve_metric_names(metrics), "--metrics ")


def score_before_after(rows: Sequence[PredictionRow], names: Iterable[str]) -> list[ScoreRow]:
    """The named metrics of the rows that have references and both answers, with 95 % intervals. A metric has changed
    only if the paired difference is more than chance."""
    names = list(names)
    rows = _select_scored_rows(rows)
    if not rows:
        return []
    references = [row.references for row in rows]
    metrics = expand_metric_names(name for name in names if name not in SCORE_TABLES)
    images = [row.images for row in rows]
    before_boxes, after_boxes = list_known_boxes(rows)
    before = compute_tallies(metrics, [row.base or "" for row in rows], references, images, before_boxes)
    after = compute_tallies(metrics, [row.tuned or "" for row in rows], references, images, after_boxes)
    score_rows = [row for name in names if name in SCORE_TABLES for row in SCORE_TABLES[name](rows)]
    for b, a in zip(build_scores(before), build_scores(after), strict=True):
        difference = compare_tallies(a.name, before[a.name], after[a.name])
        change, text = classify_difference(difference), format_difference(difference)
        description = METRICS[a.name].description + ("; lower is better" if METRICS[a.name].sign < 0 else "")
        score_rows.append(ScoreRow(a.name, format_score(b), format_score(a), change, a.note or "", text, description))
    return score_rows


def compute_gains(rows: Sequence[PredictionRow], names: Iterable[str]) -> list[float | None]:
    """How much closer to its references each row's answer is after training, in the sample metric. None for a row
    without references or an answer, and for all rows if the metric is undefined or there is none."""
    scored, name = _select_scored_rows(rows), select_sample_metric(names)
    if name is None or not scored:
        return [None] * len(rows)
    before, after = [row.base or "" for row in scored], [row.tuned or "" for row in scored]
    [difference] = compare_answers([name], before, after, [row.references for row in scored], list_known_boxes(scored))
    is_defined = difference.value is not None
    differences = dict(zip(map(id, scored), difference.per_example, strict=is_defined))
    return [METRICS[name].sign * differences[id(row)] if id(row) in differences else None for row in rows]


def _select_scored_rows(rows: Sequence[PredictionRow]) -> list[PredictionRow]:
    return [row for row in rows if row.references and row.base is not None and row.tuned is not None]
