"""The log: valid JSON lines after every write, and after a kill."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.report.run_log import RunLog, parse_number, read_log, select_series


def test_a_record_can_be_read_once_written(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "new" / "log.jsonl")
    log.write(
        {"kind": "train", "step": 1, "loss": np.float32(2.5), "note": "一只猫", "path": Path("a/b"), "tags": (1, True)}
    )
    assert read_log(log.path) == [
        {"kind": "train", "step": 1, "loss": 2.5, "note": "一只猫", "path": "a/b", "tags": [1, True]}
    ]
    log.close()


def test_non_finite_numbers_are_valid_json(tmp_path: Path) -> None:
    values = [float("nan"), float("inf"), -float("inf"), np.float64("nan")]
    with RunLog(tmp_path / "log.jsonl") as log:
        log.write({"kind": "train", "step": 3, "losses": values})

    def refuse(text: str) -> None:
        raise AssertionError(text)

    line = json.loads(log.path.read_text(), parse_constant=refuse)
    assert line["losses"] == ["nan", "inf", "-inf", "nan"]
    assert [parse_number(text) == parse_number(text) for text in line["losses"]] == [False, True, True, False]
    assert [parse_number(value) for value in (True, None, "1", 2)] == [None, None, None, 2.0]


def test_a_value_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.jsonl") as log, pytest.raises(TypeError, match="object"):
        log.write({"kind": "event", "text": object()})


@pytest.mark.parametrize("cut", range(1, 20))
def test_an_incomplete_last_line_is_dropped_and_logging_continues(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write({"step": 1})
        log.write({"step": 2, "text": "猫"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    complete = [{"step": 1}] + ([{"step": 2, "text": "猫"}] if cut == 1 else [])
    assert read_log(path) == complete
    with RunLog(path) as log:
        log.write({"step": 3})
    assert read_log(path) == [*complete, {"step": 3}]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(LorgnetteError, match="line 2"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(LorgnetteError, match="cannot be read"):
        read_log(tmp_path / "absent.jsonl")


def test_resuming_drops_later_steps_and_keeps_records_without_a_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write({"kind": "skipped", "row": 7})
        for step in range(1, 6):
            log.write({"kind": "train", "step": step, "loss": 1 / step})
    path.write_bytes(path.read_bytes() + b'{"kind": "tr')
    with RunLog.resume(path, 3) as log:
        log.write({"kind": "train", "step": 4, "loss": 0.25})
    assert [record.get("step") for record in read_log(path)] == [None, 1, 2, 3, 4]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_run_without_a_checkpoint_begins_its_log_anew(tmp_path: Path) -> None:
    """Step 0 is evaluated again, and would be in the log twice."""
    path = tmp_path / "log.jsonl"
    for content in ('{"kind": "eval", "step": 0}\n{"kind": "stage"}\n', "rubbish\n{}\n"):
        path.write_text(content)
        with RunLog.resume(path, None) as log:
            log.write({"kind": "eval", "step": 0})
        assert read_log(path) == [{"kind": "eval", "step": 0}]


def test_resuming_drops_what_is_written_again_at_the_start(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.jsonl") as log:
        for record in ({"kind": "skipped", "row": 7}, {"kind": "stage"}, {"kind": "eval", "step": 0}):
            log.write(record)
    with RunLog.resume(log.path, 0, repeated_kinds=("skipped",)) as log:
        log.write({"kind": "skipped", "row": 7})
    assert [record["kind"] for record in read_log(log.path)] == ["stage", "eval", "skipped"]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("secret")
    (tmp_path / "log.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(LorgnetteError, match="log cannot be written: Too many levels of symbolic links"):
        RunLog(tmp_path / "log.jsonl")
    assert (tmp_path / "mine").read_text() == "secret"


def test_resuming_without_a_log_starts_one(tmp_path: Path) -> None:
    RunLog.resume(tmp_path / "log.jsonl", 3).close()
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_series_is_one_field_over_the_steps() -> None:
    records = [
        {"kind": "train", "step": 1, "loss": 2.0},
        {"kind": "eval", "step": 1, "eval_loss": 3.0},
        {"kind": "train", "step": 2, "loss": "nan"},
        {"kind": "train", "step": 3},
    ]
    (first, second) = select_series(records, "train", "loss")
    assert first == (1.0, 2.0)
    assert second[0] == 2.0
    assert second[1] != second[1]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorgnetteError, match="log cannot be written"):
        RunLog(tmp_path / "file" / "log.jsonl")
