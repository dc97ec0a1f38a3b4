"""The run's page: what was trained, what it learned, what it says now."""

from collections.abc import Sequence

from lorgnette.config import Settings
from lorgnette.report import log
from lorgnette.report.chart import Curve
from lorgnette.report.folder import RunFolder
from lorgnette.report.page import Page, write_page
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.trackers import Tracker
from lorgnette.run.material import Material

CURVES = {"loss": ("train", "loss"), "eval loss": ("eval", "eval_loss"), "lr": ("train", "lr"), "grad norm": ("train", "grad_norm")}


def write_results(
    folder: RunFolder,
    chosen: Settings,
    material: Material,
    rows: Sequence[PredictionRow],
    trackers: Sequence[Tracker],
    *,
    scores: Sequence[tuple[str, str, str]] = (),
) -> None:
    records = log.read(folder.log)
    curves = [Curve(name, log.series(records, kind, field)) for name, (kind, field) in CURVES.items()]
    seconds = {record["name"]: log.number(record["seconds"]) for record in records if record.get("kind") == "stage"}
    losses = curves[0].points
    steps = f"{losses[-1][0]:.0f} steps on {len(material.examples)} examples in {seconds.get('steps') or 0:.0f} s"
    facts = [
        ("Base model", chosen.model),
        ("Adapter", f"LoRA rank {chosen.lora.rank}, alpha {chosen.lora.alpha}, on {', '.join(chosen.lora.towers)}"),
        ("Examples", f"{len(material.examples)} trained on, {len(material.held_out)} held out"),
        ("Pictures", f"{len(material.grids)} distinct"),
        *((f"Seconds: {name}", f"{value:.1f}") for name, value in seconds.items() if value is not None),
    ]
    address = [tracker.address for tracker in trackers if tracker.address]
    page = Page(
        title=folder.path.name,
        summary=f"{steps}; loss {losses[0][1]:.3g} → {losses[-1][1]:.3g}.",
        settings=chosen.model_dump(mode="json"),
        facts=facts,
        curves=curves,
        rows=rows,
        scores=scores,
        problems=[str(problem) for problem in material.problems],
        next_steps=[f"lorgnette predict --adapter {folder.adapter} PICTURE", *address],
    )
    write_page(folder.page, page)
