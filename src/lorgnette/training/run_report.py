"""Writes the report of a run: what was trained, its curves, its answers before and after."""

from collections.abc import Iterator, Sequence

from lorgnette.config import Settings
from lorgnette.data import format_problems
from lorgnette.inference.answers import describe_row_cuts
from lorgnette.metrics.answer_tables import format_tables
from lorgnette.metrics.registry import METRICS, expand_metric_names, get_best_model_metric, select_tracked_metric
from lorgnette.metrics.report import compute_gains, count_before_after, score_before_after
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.curve_summary import (
    MIN_STEPS,
    WHEN_CONTINUED,
    WHEN_NEW,
    explain_no_change,
    summarize_best_step,
    summarize_loss,
)
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import RunPage, write_run_page
from lorgnette.report.manifest import read_manifest
from lorgnette.report.run_dir import RunDir
from lorgnette.report.trackers.tracker import Tracker
from lorgnette.report.training_overlap import TrainingOverlap, find_training_overlap
from lorgnette.report.verdict import judge_training
from lorgnette.training.data_module import TrainingData
from lorgnette.training.eval_samples import build_metric_curve, find_sample_limit, samples_over_time
from lorgnette.training.run_facts import (
    describe_comparison,
    list_facts,
    list_next_steps,
    list_private_folders,
    sum_stages,
)
from lorgnette.training.start_warnings import explain_built_in_model
from lorgnette.training.step_count import END_KIND, SKIPPED_STEP_KIND, STOPPED_BY_CALLBACK, StepCount
from lorgnette.types import BASE_MODEL, PredictionRow


def write_run_report(
    settings: Settings,
    run_dir: RunDir,
    data: TrainingData,
    rows: Sequence[PredictionRow],
    trackers: Sequence[Tracker],
    terminal: Terminal,
) -> None:
    """Write report.html; print the scores and the sentences about curves and answers."""
    scores = score_before_after(rows, settings.predict.metrics)
    tables = count_before_after(rows, settings.predict.metrics, data.labels)

    # Curves and seconds come from the log alone, so that they cover a resumed run as a whole.
    records = run_log.read_log(run_dir.log)
    curves = {name: run_log.select_series(records, kind, field) for name, (kind, field) in run_log.CURVES.items()}
    best_metric = get_best_model_metric(settings)
    tracked_metric = select_tracked_metric(settings)
    metric_curves = build_metric_curve(records, rows, tracked_metric, selects_best=best_metric is not None)
    seconds = sum_stages(records)

    # Say what they show. The log may have been deleted.
    can_learn = not explain_built_in_model(settings.model, data.iter_references())
    losses, evals, best, summary, reason = curves["loss"], curves["eval loss"], str(run_dir.best), "", ""
    num_steps = int(max((step for step, _ in [*losses, *evals]), default=0))
    if losses:
        duration = f" in {seconds['steps']:.0f} s" if "steps" in seconds else ""
        steps = f"{num_steps} {'step' if num_steps == 1 else 'steps'} on {len(data.examples)} examples{duration}"
        # The eval losses are of the same examples; the first and the last training loss are not.
        name, points = ("eval loss", evals) if len(evals) > 1 and evals[0][0] == 0 else ("loss", losses)
        summary = f"{steps}; {name} {points[0][1]:.3g} → {points[-1][1]:.3g}."
        reason = explain_no_change(settings.train, num_steps) if can_learn else ""
        if stop := _find_stop(records, num_steps):
            reason = f"a training of {num_steps} {'step' if num_steps == 1 else 'steps'}, {stop}"
    when = WHEN_CONTINUED if settings.adapter else WHEN_NEW
    notes = summarize_loss(
        losses, evals, curves["gradient norm"], None if best_metric else best, reason, can_learn=can_learn, when=when
    )
    if best_metric:
        [curve] = metric_curves
        is_higher_better = METRICS[best_metric].sign > 0
        notes += summarize_best_step(curve.name, curve.points, best, higher_is_better=is_higher_better, when=when)
    overlap = _find_overlap(settings, run_dir, rows)
    best_point = _find_best_step(evals, metric_curves, best_metric)
    is_chosen = best_point is not None and best_point[1] < num_steps
    notes += _describe_steps(settings, data, records, notes, num_steps, is_chosen=is_chosen)
    notes += _describe_answers(settings, rows, overlap)
    metric_names = expand_metric_names(settings.predict.metrics)
    is_step_chosen = settings.train.early_stopping_patience is not None
    verdict = judge_training(
        rows, metric_names, losses, evals, is_step_chosen=is_step_chosen, trained_on=overlap.flags or ()
    )
    loss, eval_loss, *others = (Curve(name, points) for name, points in curves.items())
    page = RunPage(
        title=run_dir.path.resolve().name,
        verdict=verdict,
        compared=describe_comparison(settings, data, rows, num_steps),
        summary=summary,
        settings=settings.model_dump(mode="json"),
        facts=list_facts(settings, data, rows, records, read_manifest(run_dir.manifest)),
        stages=[(name, f"{value:.1f} s") for name, value in seconds.items()],
        best=best_point,
        curves=[loss, eval_loss, *metric_curves, *others],
        rows=rows,
        scores=scores,
        tables=tables,
        gains=compute_gains(rows, settings.predict.metrics),
        trained_on=overlap.flags or (),
        samples=samples_over_time(records, rows),
        sample_limit=find_sample_limit(records),
        notes=notes,
        problems=format_problems(data.problems, max_places=None),
        num_skipped=len(data.problems),
        next_steps=[
            *list_next_steps(settings, run_dir, rows),
            *(("The tracker's page of this run", tracker.address) for tracker in trackers if tracker.address),
        ],
        folders=list_private_folders(settings, run_dir, data),
    )
    # The page first: standard output may fail.
    write_run_page(run_dir.report, page)
    for line in [
        *(f"{s.name:<28} {s.before:>22} → {s.after}{s.note and f'  ({s.note})'}" for s in scores),
        *format_tables(tables, ["before", "after"], width=terminal.width, page=run_dir.report.name),
        *notes,
        verdict.text,
        f"adapter    {run_dir.adapter}",
        f"report     {run_dir.report}",
    ]:
        terminal.print_result(line)


def _find_best_step(
    evals: Sequence[tuple[float, float]], metric_curves: Sequence[Curve], best_metric: str | None
) -> tuple[str, float] | None:
    """The curve that selects the best step, and that step; None if the model before is better than every step."""
    name, points, sign = "eval loss", evals, 1
    if best_metric:
        [curve] = metric_curves
        name, points, sign = curve.name, curve.points, -METRICS[best_metric].sign
    step = min(points, key=lambda point: (sign * point[1], point[0]))[0] if points else 0
    return (name, step) if step > 0 else None


def _find_overlap(settings: Settings, run_dir: RunDir, rows: Sequence[PredictionRow]) -> TrainingOverlap:
    """Which answers are about images that were also trained on."""
    if settings.data.split == "image" and settings.data.test is None and settings.adapter is None:
        return TrainingOverlap((False,) * len(rows))  # the split excludes it
    return find_training_overlap("this run", run_dir.manifest, [row.images for row in rows])


def _describe_steps(
    settings: Settings,
    data: TrainingData,
    records: Sequence[run_log.Record],
    notes: Sequence[str],
    num_steps: int,
    *,
    is_chosen: bool,
) -> Iterator[str]:
    """How many steps were taken, and why no more. is_chosen: an earlier step than the last is the best."""
    warning, stop = StepCount(len(data.examples), settings.train).warning, _find_stop(records, num_steps)
    if stop:
        few = ": too few to change much" if num_steps < MIN_STEPS else ""
        yield f"Training took {num_steps} {'step' if num_steps == 1 else 'steps'}, {stop}{few}."
    elif warning and not any("optimizer step" in note for note in notes):
        yield f"{warning[0].upper()}{warning[1:]}."
    if settings.train.epochs == "auto":
        ends = [record for record in records if record.get("kind") == END_KIND]
        yield from (f"Training took {record['text']}." for record in ends)
    if num_skipped := sum(record.get("kind") == SKIPPED_STEP_KIND for record in records):
        yield (
            f"{num_skipped} of {num_steps} steps changed nothing, because their gradients were too large for float16. "
            "A few are usual, above all at the start."
        )
    if note := explain_built_in_model(settings.model, data.iter_references()):
        yield note
    if is_chosen:
        yield (
            f"The {len(data.held_out)} held-out examples that are scored also chose the best step, so its scores are "
            "better than they would be for other images."
        )


def _find_stop(records: Sequence[run_log.Record], num_steps: int) -> str:
    """`stopped by the callback NAME`, if one ended the training at this last step; else empty."""
    texts = (record["text"] for record in records if record.get("kind") == "event" and record["step"] == num_steps)
    return next((text[start:] for text in texts if (start := text.find(STOPPED_BY_CALLBACK)) >= 0), "")


def _describe_answers(settings: Settings, rows: Sequence[PredictionRow], overlap: TrainingOverlap) -> Iterator[str]:
    """What a reader of the scores has to know about the answers."""
    if rows and rows[0].before != BASE_MODEL:
        yield f"This run continues {rows[0].before}: before is the base model with that adapter."
    yield from overlap.notes
    yield from describe_row_cuts(rows, f"predict.max_new_tokens={settings.predict.max_new_tokens}")
