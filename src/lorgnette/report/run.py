"""A run as Python users want it: its adapter, scores, answers and log, read from its folder.

    run = lorgnette.train("captions.csv")        or        run = lorgnette.Run("runs/captions")
    run.adapter · run.report · run.verdict       paths, and whether it worked
    run.scores · run.predictions · run.log       tables: a notebook shows them, .to_pandas() makes a DataFrame

A run may be given wherever a command wants a run or an adapter.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError
from lorgnette.metrics.bootstrap import compare_tallies
from lorgnette.metrics.box_answers import list_known_boxes
from lorgnette.metrics.registry import build_scores, compute_tallies, expand_metric_names
from lorgnette.report import run_log
from lorgnette.report.notebook import Answers, InlinePage, Table, render_result
from lorgnette.report.predictions import read_predictions
from lorgnette.report.run_dir import RunDir
from lorgnette.report.training_overlap import find_training_overlap
from lorgnette.report.verdict import judge_training

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Run:
    """The run in a folder. What it has not written yet is empty.

    Raises LorgnetteError if the folder is no run.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        RunDir.open_existing(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> RunDir:
        """The paths of all its files."""
        return RunDir(self.path)

    @property
    def adapter(self) -> Path:
        """The folder of the adapter after the last step."""
        return self.folder.adapter

    @property
    def best(self) -> Path:
        """The folder of the adapter of the best step; that of the last step if no other was better."""
        return self.folder.best if self.folder.best.is_dir() else self.adapter

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.folder.report

    @cached_property
    def settings(self) -> Settings:
        """The settings it was trained with."""
        return config.load_settings(config.read_recipe(self.folder.config), where=str(self.folder.config))

    @property
    def predictions(self) -> Answers:
        """The answers to the held-out prompts before and after training."""
        return Answers(read_predictions(self.folder.predictions) if self.folder.predictions.is_file() else [])

    @property
    def scores(self) -> Table:
        """The metrics of the held-out answers: before, after, and the paired difference with its 95 % interval."""
        rows = [row for row in self.predictions if row.references and row.base is not None and row.tuned is not None]
        names = expand_metric_names(self.settings.predict.metrics)
        references, images = [row.references for row in rows], [row.images for row in rows]
        texts = [row.base or "" for row in rows], [row.tuned or "" for row in rows]
        before, after = (
            compute_tallies(names if rows else (), answers, references, images, boxes)
            for answers, boxes in zip(texts, list_known_boxes(rows), strict=True)
        )
        table = Table()
        for a, b in zip(build_scores(before), build_scores(after), strict=True):
            change = compare_tallies(a.name, before[a.name], after[a.name])
            low, high = change.shown_interval or (None, None)
            values = {"before": a.value, "after": b.value, "change": change.value, "low": low, "high": high}
            table.append({"metric": a.name, **values, "p_value": change.p_value})
        return table

    @property
    def verdict(self) -> str:
        """Whether it worked, with the evidence and the doubt, in words."""
        records, rows = self.log, self.predictions
        losses, evals = (run_log.select_series(records, *run_log.CURVES[name]) for name in ("loss", "eval loss"))
        overlap = find_training_overlap("this run", self.folder.manifest, [row.images for row in rows])
        names = expand_metric_names(self.settings.predict.metrics)
        return judge_training(rows, names, losses, evals, trained_on=overlap.flags or ()).text if rows else ""

    @property
    def log(self) -> Table:
        """The records of its log, such as {"kind": "train", "step": 10, "loss": 1.2}."""
        return Table(run_log.read_log(self.folder.log) if self.folder.log.is_file() else [])

    def show_report(self, height: int = 720) -> InlinePage:
        """The HTML page inside the notebook, where a link to a file does not work. height: in pixels."""
        if not self.report.is_file():
            message, hint = "the run has no report yet", f"{self._resume_call} goes on"
            raise LorgnetteError(message, where=str(self.path), hint=hint)
        return InlinePage(self.report, height)

    def to_pandas(self) -> "pandas.DataFrame":
        """The scores as a DataFrame. Raises LorgnetteError if pandas is not installed."""
        return self.scores.to_pandas()

    @property
    def _resume_call(self) -> str:
        """What goes on with it in Python."""
        path = str(self.path)
        return f"lorgnette.teach(run={path!r})" if self.folder.is_taught else f"lorgnette.resume({path!r})"

    def _describe(self) -> list[str]:
        """The verdict and the adapter; of a run that has not finished, where it is."""
        lines = [self.verdict] if self.verdict else []
        if not self.report.is_file() and self.folder.is_taught:
            lines.append(f"Not finished; {self._resume_call} goes on.")
        elif not self.report.is_file():
            steps = [int(path.name.removeprefix("step-")) for path in self.folder.checkpoints.glob("step-*[0-9]")]
            state = f"Stopped at step {max(steps)}" if steps else "Stopped before a step was saved"
            lines.append(f"{state}; {self._resume_call} goes on.")
        return [*lines, *([f"adapter: {self.adapter}"] if self.adapter.is_dir() else [])]

    def _repr_html_(self) -> str:
        try:
            scores, lines = self.scores, self._describe()
        except LorgnetteError as error:  # a metric of the user that this process does not know
            scores, lines = Table(), [str(error)]
        link = self.report if self.report.is_file() else None
        return render_result(title=f"Run {self.path.name}", lines=lines, rows=scores, link=link)
