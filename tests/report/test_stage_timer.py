"""Seconds of every stage reach the log, also of stages that ended before it was attached."""

import io
from pathlib import Path

import pytest

from lorgnette.rank_status import RankStatus
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.run_log import RunLog
from lorgnette.report.stage_timer import StageTimer


def test_stages_before_and_after_the_log(tmp_path: Path, terminal: Terminal, terminal_output: io.StringIO) -> None:
    timer = StageTimer(terminal)
    with timer("data"):
        pass
    with RunLog(tmp_path / "log.jsonl") as log:
        timer.attach_log(log)
        with timer("steps"):
            pass
        timer.record("decoding", 0.5)
    records = run_log.read_log(tmp_path / "log.jsonl")
    assert [(record["kind"], record["name"]) for record in records] == [
        ("stage", "data"),
        ("stage", "steps"),
        ("stage", "decoding"),
    ]
    assert records[2]["seconds"] == 0.5
    assert [line.split()[0] for line in terminal_output.getvalue().splitlines()] == ["data", "steps"]


def test_a_stage_that_fails_has_no_seconds(terminal: Terminal, terminal_output: io.StringIO) -> None:
    with pytest.raises(KeyboardInterrupt), StageTimer(terminal)("data"):
        raise KeyboardInterrupt
    assert not terminal_output.getvalue()


def test_a_stage_is_a_phase_of_the_rank(terminal: Terminal) -> None:
    timer, status = StageTimer(terminal), RankStatus()
    timer.attach_status(status)
    with timer("features"):
        assert (status.row["phase"], status.row["is_bounded"]) == (b"features", True)
    with timer("weights"):
        assert (status.row["phase"], status.row["is_bounded"]) == (b"weights", False)
