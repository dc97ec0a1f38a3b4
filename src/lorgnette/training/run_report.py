"""Writes the report of a run: what was trained, its curves, its answers before and after."""

from collections.abc import Sequence

from lorgnette.config import Settings
from lorgnette.metrics.registry import METRICS, get_best_model_metric, select_tracked_metric
from lorgnette.metrics.report import compute_gains, score_before_after
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.curve_summary import summarize_best_step, summarize_loss
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import RunPage, write_run_page
from lorgnette.report.run_dir import RunDir
from lorgnette.report.trackers.tracker import Tracker
from lorgnette.training.data_module import TrainingData
from lorgnette.training.eval_samples import build_metric_curve, samples_over_time
from lorgnette.types import PredictionRow


def write_run_report(
    settings: Settings,
    run_dir: RunDir,
    data: TrainingData,
    rows: Sequence[PredictionRow],
    trackers: Sequence[Tracker],
    terminal: Terminal,
) -> None:
    """Write report.html; print the scores and the sentences about the curves."""
    scores = score_before_after(rows, settings.predict.metrics)
    for score in scores:
        terminal.print(f"{score.name:<28} {score.before:>22} → {score.after}{score.note and f'  ({score.note})'}")

    # Curves and seconds come from the log alone, so that they cover a resumed run as a whole.
    records = run_log.read_log(run_dir.log)
    curves = {name: run_log.select_series(records, kind, field) for name, (kind, field) in run_log.CURVES.items()}
    best_metric = get_best_model_metric(settings)
    tracked_metric = select_tracked_metric(settings)
    metric_curves = build_metric_curve(records, rows, tracked_metric, selects_best=best_metric is not None)
    seconds: dict[str, float] = {}
    for record in records:
        if record.get("kind") == "stage":
            name, value = record["name"], run_log.parse_number(record["seconds"]) or 0.0
            seconds[name] = seconds.get(name, 0.0) + value

    # Say what they show. The log may have been deleted.
    losses, best, summary = curves["loss"], str(run_dir.best), ""
    if losses:
        steps = f"{losses[-1][0]:.0f} steps on {len(data.examples)} examples in {seconds['steps']:.0f} s"
        summary = f"{steps}; loss {losses[0][1]:.3g} → {losses[-1][1]:.3g}."
    notes = summarize_loss(losses, curves["eval loss"], curves["grad norm"], None if best_metric else best)
    if best_metric:
        [curve] = metric_curves
        notes += summarize_best_step(curve.name, curve.points, best, higher_is_better=METRICS[best_metric].sign > 0)
    for note in notes:
        terminal.print(note)

    loss, eval_loss, *others = (Curve(name, points) for name, points in curves.items())
    lora = settings.lora
    page = RunPage(
        title=run_dir.path.resolve().name,
        summary=summary,
        settings=settings.model_dump(mode="json"),
        facts=[
            ("Base model", settings.model),
            ("Adapter", f"LoRA rank {lora.rank}, alpha {lora.alpha}, on {', '.join(lora.parts)}"),
            ("Examples", f"{len(data.examples)} trained on, {len(data.held_out)} held out"),
            ("Images", f"{len(data.grids)} distinct"),
            *((f"Seconds: {name}", f"{value:.1f}") for name, value in seconds.items()),
        ],
        curves=[loss, eval_loss, *metric_curves, *others],
        rows=rows,
        scores=scores,
        gains=compute_gains(rows, settings.predict.metrics),
        samples=samples_over_time(records, rows),
        notes=notes,
        problems=[str(problem) for problem in data.problems],
        next_steps=[
            f"lorgnette predict --adapter {run_dir.adapter} IMAGE",
            *(tracker.address for tracker in trackers if tracker.address),
        ],
    )
    write_run_page(run_dir.report, page)
    terminal.print(f"adapter    {run_dir.adapter}")
    terminal.print(f"report     {run_dir.report}")
