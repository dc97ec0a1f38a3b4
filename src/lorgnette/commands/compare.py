"""`compare`: one page that sets the answers of several side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette.commands.compare_candidates import (
    BASE,
    Candidate,
    is_answers_file,
    list_training_prompts,
    resolve_candidates,
    split_before_after,
)
from lorgnette.commands.evaluate import load_eval_prompts, select_default_metrics
from lorgnette.errors import UsageError
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import ModelCache
from lorgnette.io.paths import check_writable
from lorgnette.metrics.bootstrap import Difference
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.held_out import get_direction
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.report import (
    MetricReport,
    classify_difference,
    compute_report,
    describe_metric,
    format_style_rows,
    parse_metric_names,
)
from lorgnette.metrics.score import Score
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.html.charts import Chart, Curve, build_overlay
from lorgnette.report.html.comparison import (
    CellDifference,
    ComparisonCard,
    ComparisonPage,
    MetricRow,
    ScoreCell,
    write_comparison_page,
)
from lorgnette.report.run_dir import find_free_path
from lorgnette.training.run_report import CURVES


def compare(
    *inputs: Path | str,
    out: Path | str | None = None,
    metrics: str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    rows: int | None = None,
    images_from: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """A page of what each of `those` says to the questions of a data file, which is the last of them. Each is `base`,
    an adapter or its run, a model, or a file of answers; one alone is compared with its base.

    out: the page; what stands there is replaced, and said to be. Default: compare.html, or the next name that is free.
    """
    terminal = Terminal(console)
    if len(inputs) < 2:
        raise UsageError("nothing to ask", where="compare", hint="name an adapter and a data file")
    words, source = [str(one) for one in inputs[:-1]], Path(inputs[-1])
    page = Path(out) if out else find_free_path(Path(), "compare", ".html")
    replaced = page.is_file()
    check_writable(page, source, *(Path(word) for word in words if is_answers_file(word)))
    sides = _resolve_inputs(words, model, terminal)
    names = parse_metric_names(metrics, select_default_metrics(sides))
    asked = load_eval_prompts(sides, source, prompt=prompt, rows=rows, images_from=images_from)
    notes = list(_collect_notes(sides, asked))
    for note in notes:
        terminal.warn(note)
    sampling = SamplingParams(max_new_tokens=max_new_tokens, batch_size=batch_size)
    weights = ModelCache(device)
    answers = [side.answer(asked, sampling, terminal, weights) for side in sides]
    found = compute_report(names, asked, answers)
    write_comparison_page(page, _build_page(sides, source, asked, answers, found, notes))
    terminal.print(_summarize(sides, found, len(asked)))
    terminal.print(f"page       {page}{', in the place of the one that was there' if replaced else ''}")
    return page


def _resolve_inputs(names: list[str], model: str | None, terminal: Terminal) -> list[Candidate]:
    if len(names) == 1 and is_answers_file(names[0]):
        return split_before_after(Path(names[0]))
    if names == [BASE]:
        raise UsageError("nothing to compare it with", where=BASE, hint="name an adapter")
    return resolve_candidates(names if len(names) > 1 else [BASE, *names], model, terminal)


def _build_page(
    candidates: Sequence[Candidate],
    source: Path,
    prompts: Sequence[EvalPrompt],
    answers: Sequence[Sequence[str]],
    report: MetricReport,
    notes: Sequence[str],
) -> ComparisonPage:
    styles = [*report.styles, *([report.reference_style] if report.reference_style else [])]
    return ComparisonPage(
        title="Side by side",
        summary=_summarize(candidates, report, len(prompts)),
        candidates=tuple(side.name for side in candidates),
        cards=[
            ComparisonCard(question.example.id, question.pictures, question.prompt, question.references, texts)
            for question, *given in zip(prompts, *answers, strict=True)
            for texts in [tuple(given)]
        ],
        metrics=[_build_metric_row(place, report, len(prompts)) for place in range(len(report.metric_names))]
        if report.scores
        else (),
        sort_metric=report.main_metric,
        style=[(name, row if report.reference_style else (*row, "–")) for name, row in format_style_rows(styles)],
        charts=_build_charts(candidates),
        settings=_find_differing_settings(candidates),
        facts=[
            ("Data", str(source)),
            ("Questions", str(len(prompts))),
            ("With references", str(len(report.scored_indices))),
        ],
        notes=notes,
    )


def _collect_notes(candidates: Sequence[Candidate], prompts: Sequence[EvalPrompt]) -> Iterator[str]:
    """What a reader must know before believing the scores: answers may come from elsewhere, a side may be asked
    otherwise than in its training, and not all may be scored. Raises LorgnetteError where a file lacks answers."""
    for side in candidates:
        yield from side.check_saved_answers(prompts)
    trained, now = list_training_prompts(candidates), {question.text for question in prompts}
    if len(trained) > 1:
        asking = repr(prompts[0].text) if len(now) == 1 else "what the data says"
        yield f"trained with different prompts ({', '.join(map(repr, trained))}); all are asked {asking}"
    bare = sum(not question.references for question in prompts)
    if bare:
        yield f"{bare} of {len(prompts)} questions have no reference and are not scored"


def _build_metric_row(metric_index: int, report: MetricReport, num_cards: int) -> MetricRow:
    name, sides = report.metric_names[metric_index], range(len(report.scores))
    scores = [report.scores[side][metric_index] for side in sides]
    note = next((score.note for score in scores if score.note), "")
    each: tuple[tuple[float | None, ...], ...] = ()
    if all(score.value is not None for score in scores):
        each = tuple(_align_to_cards(score.per_example, report.scored_indices, num_cards) for score in scores)
    cells = tuple(
        _build_cell(
            scores[side],
            [(over, report.differences[side, over][metric_index]) for over in sides if over != side] if each else [],
        )
        for side in sides
    )
    return MetricRow(name, describe_metric(name), METRICS[name].better, cells, each, note)


def _build_cell(score: Score, differences: Sequence[tuple[int, Difference]]) -> ScoreCell:
    if score.value is None:
        return ScoreCell("–")
    interval = f"{score.interval[0]:.3f} to {score.interval[1]:.3f}" if score.interval else ""
    return ScoreCell(f"{score.value:.3f}", interval, tuple(_build_difference(over, gap) for over, gap in differences))


def _build_difference(baseline: int, difference: Difference) -> CellDifference:
    assert difference.value is not None
    if difference.interval is None:
        return CellDifference(baseline, _format_signed(difference.value), "", classify_difference(difference))
    low, high = map(_format_signed, difference.interval)
    return CellDifference(
        baseline,
        f"{_format_signed(difference.value)}, p {difference.p_value:.3f}",
        f"{low} to {high}",
        classify_difference(difference),
    )


def _format_signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _align_to_cards(values: Sequence[float], scored_indices: Sequence[int], num_cards: int) -> tuple[float | None, ...]:
    """A value for every card, None for those without a reference."""
    at = dict(zip(scored_indices, values, strict=True))
    return tuple(at.get(card) for card in range(num_cards))


def _summarize(candidates: Sequence[Candidate], report: MetricReport, num_prompts: int) -> str:
    """What the page says in a sentence: the last of them against the first, in the metric that says most."""
    said = f"{num_prompts} {'question' if num_prompts == 1 else 'questions'}, {len(candidates)} answers each."
    if not report.main_metric:
        return said
    place, last = report.metric_names.index(report.main_metric), len(candidates) - 1
    gap, sign = report.differences[last, 0][place], get_direction(report.main_metric)
    between = _build_difference(0, gap)
    sure = f" ({between.interval})" if between.interval else ""
    closer, further = (sum(turn * sign * value > 0 for value in gap.per_example) for turn in (1, -1))
    return (
        f"{said} In {report.main_metric}, {candidates[last].name} differs from {candidates[0].name} by {between.text}{sure}: closer to "
        f"the reference in {closer}, further in {further}."
    )


def _build_charts(candidates: Sequence[Candidate]) -> list[Chart]:
    """Loss, eval loss and learning rate of the runs whose log is at hand."""
    runs = [(side.name, side.run) for side in candidates]
    logs = [(name, run_log.read_log(run.log) if run is not None and run.log.is_file() else []) for name, run in runs]
    drawn: list[Chart] = []
    for name in ("loss", "eval loss", "lr"):
        kind, value = CURVES[name]
        drawn += build_overlay(
            name, [Curve(side, run_log.select_series(records, kind, value)) for side, records in logs]
        )
    return drawn


def _find_differing_settings(candidates: Sequence[Candidate]) -> list[tuple[str, tuple[str, ...]]]:
    """The settings in which those that have any differ."""
    known = [side.training_settings for side in candidates]
    names = dict.fromkeys(name for settings in known for name in settings)
    rows = [(name, tuple(settings.get(name, "–") for settings in known)) for name in names]
    return [(name, values) for name, values in rows if len(set(values) - {"–"}) > 1]
