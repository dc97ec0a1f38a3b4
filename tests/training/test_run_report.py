"""The page of a run, from its log alone."""

from collections.abc import Callable
from pathlib import Path

from lorgnette.report.html.page import ScoreRow
from lorgnette.report.run_log import RunLog
from lorgnette.training.job import Job
from lorgnette.training.run_report import write_run_report


def test_the_page_says_what_was_done(job: Callable[..., Job], tmp_path: Path) -> None:
    done = job(f"run={tmp_path / 'first try'}")
    with RunLog(done.folder.log) as log:
        for step, loss in ((1, 2.5), (10, 1.25)):
            log.write({"kind": "train", "step": step, "loss": loss, "lr": 1e-4, "grad_norm": 1.0})
        log.write({"kind": "stage", "name": "steps", "seconds": 3.2})
    write_run_report(done, [], [ScoreRow("right", "1 of 2", "2 of 2")], ["http://here"])
    page = done.folder.report.read_text(encoding="utf-8")
    for part in ("first try", "10 steps on 4 examples in 3 s; loss 2.5", "2 of 2", "http://here"):
        assert part in page


def test_a_log_that_is_gone_costs_the_curves_only(job: Callable[..., Job]) -> None:
    done = job()
    done.folder.log.touch()
    write_run_report(done, [], [], [])
    assert "4 trained on, 2 held out" in done.folder.report.read_text(encoding="utf-8")
