"""The run's page: what was trained, what it learned, what it says now."""

from collections.abc import Sequence

from lorgnette.metrics.held_out import compute_gains, get_best_model_metric, get_direction, select_tracked_metric
from lorgnette.report import run_log
from lorgnette.report.curve_summary import summarize_best_step, summarize_loss
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import RunPage, ScoreRow, write_run_page
from lorgnette.report.predictions import PredictionRow
from lorgnette.training import eval_samples
from lorgnette.training.job import Job

CURVES = {
    "loss": ("train", "loss"),
    "eval loss": ("eval", "eval_loss"),
    "lr": ("train", "lr"),
    "grad norm": ("train", "grad_norm"),
}
"""Curve → kind of record and field in the log."""


def write_run_report(
    job: Job, rows: Sequence[PredictionRow], scores: Sequence[ScoreRow], addresses: Sequence[str]
) -> None:
    """Write the page. addresses: where the trackers show the run."""
    chosen, material = job.settings, job.material
    records = run_log.read_log(job.folder.log)
    curves = [Curve(name, run_log.select_series(records, kind, field)) for name, (kind, field) in CURVES.items()]
    judge = get_best_model_metric(chosen)
    metric = eval_samples.build_metric_curve(
        records, rows, select_tracked_metric(chosen), selects_best=judge is not None
    )
    seconds: dict[str, float] = {}
    for record in records:  # a resumed run has several of each
        if record.get("kind") == "stage":
            seconds[record["name"]] = seconds.get(record["name"], 0.0) + (
                run_log.parse_number(record["seconds"]) or 0.0
            )
    summary, losses = "", curves[0].points
    if losses:  # a log that somebody removed has none
        took = f"{losses[-1][0]:.0f} steps on {len(material.examples)} examples in {seconds['steps']:.0f} s"
        summary = f"{took}; loss {losses[0][1]:.3g} → {losses[-1][1]:.3g}."
    best = str(job.folder.best)
    notes = summarize_loss(losses, curves[1].points, curves[3].points, None if judge else best)
    if judge:
        [drawn] = metric
        notes += summarize_best_step(drawn.name, drawn.points, best, higher_is_better=get_direction(judge) > 0)
    for note in notes:
        job.terminal.print(note)
    page = RunPage(
        title=job.folder.path.resolve().name,
        summary=summary,
        settings=chosen.model_dump(mode="json"),
        facts=[
            ("Base model", chosen.model),
            ("Adapter", f"LoRA rank {chosen.lora.rank}, alpha {chosen.lora.alpha}, on {', '.join(chosen.lora.parts)}"),
            ("Examples", f"{len(material.examples)} trained on, {len(material.held_out)} held out"),
            ("Pictures", f"{len(material.grids)} distinct"),
            *((f"Seconds: {name}", f"{value:.1f}") for name, value in seconds.items()),
        ],
        curves=[*curves[:2], *metric, *curves[2:]],
        rows=rows,
        scores=scores,
        gains=compute_gains(rows, chosen.predict.metrics),
        samples=eval_samples.samples_over_time(records, rows),
        notes=notes,
        problems=[str(problem) for problem in material.problems],
        next_steps=[f"lorgnette predict --adapter {job.folder.adapter} PICTURE", *addresses],
    )
    write_run_page(job.folder.report, page)
