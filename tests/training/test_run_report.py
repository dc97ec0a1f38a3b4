"""The report of a run, from its log alone."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lorgnette.report.run_log import RunLog
from lorgnette.training.run_report import write_run_report
from lorgnette.types import PredictionRow


def test_the_report_shows_steps_scores_and_trackers(prepare_run: Callable[..., Any], tmp_path: Path) -> None:
    run = prepare_run(f"run={tmp_path / 'first try'}", "predict.metrics=exact-match")
    with RunLog(run.run_dir.log) as log:
        for step, loss in ((1, 2.5), (10, 1.25)):
            log.write({"kind": "train", "step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0})
        log.write({"kind": "stage", "name": "steps", "seconds": 3.2})
    rows = [PredictionRow("a", (), "", ("a dog",), base="a cat", tuned="a dog")]
    tracker: Any = SimpleNamespace(address="http://here")
    write_run_report(run.settings, run.run_dir, run.data, rows, [tracker], run.terminal)
    page = run.run_dir.report.read_text(encoding="utf-8")
    for part in (
        "first try",
        "10 steps on 4 examples in 3 s; loss 2.5",
        "exact-match",
        "1.000",
        "http://here",
        "learning rate",
    ):
        assert part in page


def test_an_empty_log_leaves_out_the_curves_only(prepare_run: Callable[..., Any]) -> None:
    run = prepare_run()
    run.run_dir.log.touch()
    write_run_report(run.settings, run.run_dir, run.data, [], [], run.terminal)
    assert "4 trained on, 2 held out" in run.run_dir.report.read_text(encoding="utf-8")
