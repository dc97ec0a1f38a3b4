"""Seconds of every stage reach the log, also of stages that ended before it was attached."""

import io
import time
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
    with RunLog(tmp_path / "log.jsonl") as log, timer.attach_log(log):
        with timer("steps"):
            pass
        timer.record("decoding", 0.5)
    with timer("report", is_printed=False):
        pass
    with RunLog(tmp_path / "log.jsonl") as log, timer.attach_log(log):
        pass
    records = run_log.read_log(tmp_path / "log.jsonl")
    assert [(record["kind"], record["name"]) for record in records] == [
        ("stage", "data"),
        ("stage", "steps"),
        ("stage", "decoding"),
        ("stage", "report"),
    ]
    assert records[2]["seconds"] == 0.5
    assert [line.split()[0] for line in terminal_output.getvalue().splitlines()] == ["data", "steps"]


def test_stages_and_what_is_between_them_are_the_whole_time(tmp_path: Path, terminal: Terminal) -> None:
    start = time.perf_counter() - 7.0
    timer = StageTimer(terminal, start)
    for name in ("data", "steps"):
        time.sleep(0.002)
        with timer(name):
            time.sleep(0.002)
    timer.record("decoding", 0.5)
    with RunLog(tmp_path / "log.jsonl") as log, timer.attach_log(log):
        whole = time.perf_counter() - start
    first, *others, part = run_log.read_log(tmp_path / "log.jsonl")
    assert (first["name"], first["seconds"]) == ("start", first["end_s"])
    assert first["seconds"] >= 7.0
    end = first["end_s"]
    for stage in others:
        assert stage["end_s"] - stage["seconds"] - end >= 0.002
        end = stage["end_s"]
    assert end <= whole
    assert "end_s" not in part


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
