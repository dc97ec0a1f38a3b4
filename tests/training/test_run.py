"""One training from material to page, in this process: what is logged, in which order, and what a tracker gets."""

import io
from collections.abc import Callable
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.report import run_log
from lorgnette.training import run
from lorgnette.training.job import Job


class Recorder:
    address = "http://here"

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, settings: Any) -> None:
        self.told.append(("start", settings["train"]["epochs"]))

    def log(self, metrics: Any, step: int) -> None:
        self.told.append((step, next(iter(metrics))))

    def predictions(self, rows: Any, step: int) -> None:
        self.told.append((step, len(rows)))

    def finish(self) -> None:
        self.told.append("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(run, "open_trackers", lambda *_, **__: [made])
    return made


def test_the_life_of_a_training(job: Callable[..., Job], recorder: Recorder, said: io.StringIO) -> None:
    started = job()
    run.run_training(started)
    assert recorder.told == [
        ("start", 1), (0, "eval/loss"), (0, "eval/ROUGE-L"), (0, 2),
        (1, "train/epoch"), (2, "train/epoch"), (2, "eval/loss"), (2, 2), "finish",
    ]  # fmt: skip
    records = run_log.read_log(started.folder.log)
    stages = [record["name"] for record in records if record["kind"] == "stage"]
    assert [name for name in stages if name != "decoding"] == [
        "transformers", "weights", "features", "adapter", "steps", "save", "answers",
    ]  # fmt: skip
    assert {path.name for path in started.folder.path.iterdir()} == {
        "adapter", "checkpoints", "log.jsonl", "predictions.jsonl", "report.html",
    }  # fmt: skip
    assert "tracker    http://here" in said.getvalue()
    assert "http://here" in started.folder.report.read_text(encoding="utf-8")


def test_trackers_are_finished_whatever_happens(job: Callable[..., Job], recorder: Recorder, monkeypatch) -> None:
    def fails(*_: Any) -> None:
        raise LorgnetteError("step 1: not finite")

    monkeypatch.setattr(run.Trainer, "run", fails)
    started = job()
    with pytest.raises(LorgnetteError, match="not finite"):
        run.run_training(started)
    assert recorder.told == [("start", 1), "finish"]
    assert not started.folder.adapter.exists()


def test_nothing_is_begun_before_weights_are_loaded(job: Callable[..., Job], recorder: Recorder, monkeypatch) -> None:
    def fails(*_: Any) -> None:
        raise LorgnetteError("weights cannot be loaded")

    monkeypatch.setattr("lorgnette.engine.hf_loading.load_base_model", fails)
    started = job()
    with pytest.raises(LorgnetteError, match="weights"):
        run.run_training(started)
    assert not recorder.told
    assert not started.folder.log.exists()


def test_a_loss_that_is_not_finite_names_its_rows(job: Callable[..., Job]) -> None:
    started = job("train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.epochs=4")
    with pytest.raises(LorgnetteError, match=r"not finite(.|\n)*captions\.csv, row \d"):
        run.run_training(started)
