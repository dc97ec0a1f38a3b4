"""One training in this process: what is logged, in which order, and what a tracker gets."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorgnette.config import Settings
from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features
from lorgnette.inference.answers import AnswersInterrupted
from lorgnette.report import run_log
from lorgnette.report.run_dir import RunDir
from lorgnette.training.callbacks import TrainingCallbacks
from lorgnette.training.checkpoint import STATE_FILE, find_latest_checkpoint, load_checkpoint
from lorgnette.training.run import _find_checkpoint, _select_device_and_dtype
from lorgnette.training.setup import TrainingSetup, build_training
from lorgnette.training.trainer import Trainer
from lorgnette.verification.reference_sample import ReferenceSample
from tests.ranks import run_ranks

PrepareRun = Callable[..., Any]


class Recorder:
    """A tracker that records its calls."""

    address = "http://here"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, settings: Any) -> None:
        self.calls.append(("start", settings["train"]["epochs"]))

    def log(self, metrics: Any, step: int) -> None:
        self.calls.append((step, next(iter(metrics))))

    def log_predictions(self, rows: Any, step: int) -> None:
        self.calls.append((step, len(rows)))

    def finish(self) -> None:
        self.calls.append("finish")


def test_a_training_from_data_to_report(prepare_run: PrepareRun, terminal_output: io.StringIO) -> None:
    run, tracker = prepare_run(), Recorder()
    run.train([tracker])
    assert tracker.calls == [
        ("start", 1), (0, "eval/loss"), (0, "eval/ROUGE-L"), (0, 2),
        (1, "train/epoch"), (2, "train/epoch"), (2, "eval/loss"), (2, "eval/ROUGE-L"), (2, 2),
        "finish",
    ]  # fmt: skip
    records = run_log.read_log(run.run_dir.log)
    [memory] = [record for record in records if record["kind"] == "memory"]
    assert (memory["gpu"], memory["engine"], memory["dtype"]) == (None, "reference", "float32")
    stages = [record["name"] for record in records if record["kind"] == "stage"]
    assert [name for name in stages if name != "decoding"] == [
        "device", "fit", "transformers", "weights", "features", "adapter", "steps", "save", "release", "answers",
        "checkpoint", "report",
    ]  # fmt: skip
    assert {path.name for path in run.run_dir.path.iterdir()} == {
        "adapter", "checkpoints", "log.jsonl", "predictions.jsonl", "report.html",
    }  # fmt: skip
    step, checkpoint = find_latest_checkpoint(run.run_dir.checkpoints) or (0, Path())
    optimizer = load_checkpoint(checkpoint, torch.device("cpu"))["optimizer"]
    assert {count.item() for count in optimizer["step"]} == {step}
    assert all(moments.any() for moments in optimizer["exp_avg_sq"])
    assert "tracker    http://here" in terminal_output.getvalue()
    assert "http://here" in run.run_dir.report.read_text(encoding="utf-8")


def test_a_training_in_float16_names_the_steps_that_overflow(
    prepare_run: PrepareRun, terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.engine.loss_scale.INITIAL_LOSS_SCALE", 2.0**20)
    run = prepare_run("dtype=float16", "train.epochs=4", "train.max_grad_norm=0.1")
    run.train()
    records, output = run_log.read_log(run.run_dir.log), terminal_output.getvalue()
    skipped = [record for record in records if record["kind"] == "skipped step"]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert 0 < len(skipped) < len(steps)
    for number, record in enumerate(skipped, start=1):
        assert record["loss_scale"] == 2.0**20 / 2**number
        assert f"step {number}: skipped, its gradient was too large for float16" in output
    assert f"{len(skipped)} of {steps[-1]} steps changed nothing" in run.run_dir.report.read_text(encoding="utf-8")
    assert [record["dtype"] for record in records if record["kind"] == "memory"] == ["float16"]
    sample = ReferenceSample.load(run.run_dir.adapter)
    assert sample is not None
    assert sample.dtype == "float16"
    assert "float16 is slow on a CPU" in output


def test_the_dtype_of_a_gpu_without_bfloat16_is_said(
    prepare_run: PrepareRun, terminal: Any, terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.training.run.select_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    _, dtype = _select_device_and_dtype(Settings(), terminal, World())
    assert dtype == torch.float16
    assert "dtype      float16, with loss scaling: Tesla T4 has no bfloat16" in terminal_output.getvalue()


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_the_best_adapter_is_that_of_its_step(
    prepare_run: PrepareRun, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Bit for bit, also if it is written when later steps have changed the weights."""
    run = prepare_run(f"engine={engine}", "train.epochs=2", "train.eval_steps=1", "train.learning_rate=1e-2")
    setups, copies, is_trained = list[TrainingSetup](), dict[int, dict[str, torch.Tensor]](), Event()

    def build(*arguments: Any, **options: Any) -> TrainingSetup:
        setup = build_training(*arguments, **options)
        setups.append(setup)
        return replace(setup, start_copy=start_copy)

    def start_copy() -> Callable[[], Mapping[str, torch.Tensor]]:
        wait = setups[0].start_copy()
        return lambda: wait() if is_trained.wait(60) else {}

    def evaluate(callbacks: TrainingCallbacks, step: int, _loss: float) -> float:
        copies[step] = {name: values.clone() for name, values in setups[0].copy_adapter().items()}
        if step == callbacks.get_total_steps():
            is_trained.set()
        return abs(step - 1)  # the best is step 1

    monkeypatch.setattr("lorgnette.training.run.build_training", build)
    monkeypatch.setattr(TrainingCallbacks, "on_evaluate", evaluate)
    run.train()
    last = max(copies)
    assert last >= 3
    for folder, step in ((run.run_dir.best, 1), (run.run_dir.adapter, last)):
        saved = load_file(folder / "adapter_model.safetensors")
        assert saved.keys() == copies[step].keys()
        assert all(torch.equal(saved[name], values) for name, values in copies[step].items())
        assert not any(torch.equal(saved[name], values) for name, values in copies[step - 1].items() if "B" in name)


def test_trackers_finish_after_an_error(prepare_run: PrepareRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise LorgnetteError("step 1: not finite")

    monkeypatch.setattr(Trainer, "train", fail)
    run, tracker = prepare_run(), Recorder()
    with pytest.raises(LorgnetteError, match="not finite"):
        run.train([tracker])
    assert tracker.calls == [("start", 1), "finish"]
    assert not run.run_dir.adapter.exists()


def test_features_are_closed_after_an_error_in_the_checkpoint(
    prepare_run: PrepareRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook the error would keep their lock, and the processes that decode."""
    run, closed = prepare_run("engine=fast"), list[Features]()
    run.train()

    def fail(*_: object) -> None:
        raise LorgnetteError("checkpoint of other parameters", where="", hint="")

    close = Features.close
    monkeypatch.setattr(Features, "close", lambda features: closed.append(features) or close(features))
    monkeypatch.setattr("lorgnette.training.run.restore_checkpoint", fail)
    with pytest.raises(LorgnetteError, match="other parameters"):
        run.train([tracker := Recorder()])
    assert len(closed) == 1
    assert tracker.calls == ["finish"]


def test_an_interrupt_of_the_answers_names_the_command_for_the_rest(
    prepare_run: PrepareRun, terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise AnswersInterrupted([], 2)

    monkeypatch.setattr("lorgnette.training.run.answer_examples", interrupt)
    run = prepare_run()
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.run_dir.adapter.is_dir()
    text = "saved      the adapter; for the answers and the report: lorgnette train --resume"
    assert text in terminal_output.getvalue()


def test_nothing_starts_before_the_weights_are_loaded(prepare_run: PrepareRun, monkeypatch) -> None:
    def fail(*_: Any) -> None:
        raise LorgnetteError("weights cannot be loaded")

    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", fail)
    run, tracker = prepare_run(), Recorder()
    with pytest.raises(LorgnetteError, match="weights"):
        run.train([tracker])
    assert not tracker.calls
    assert not run.run_dir.log.exists()


def test_a_loss_that_is_not_finite_names_its_rows(prepare_run: PrepareRun) -> None:
    run = prepare_run("train.learning_rate=1e30", "train.max_grad_norm=1e30", "train.epochs=4")
    with pytest.raises(LorgnetteError, match=r"not finite(.|\n)*captions\.csv, row \d"):
        run.train()


def find_checkpoint(world: World, folder: Path, steps: list[int]) -> object:
    run_dir = RunDir(folder / f"machine-{world.rank}")
    state = run_dir.checkpoints / f"step-{steps[world.rank]:06d}" / STATE_FILE
    state.parent.mkdir(parents=True)
    state.touch()
    try:
        return _find_checkpoint(run_dir, world)[0]
    except LorgnetteError as error:
        return str(error)


def test_ranks_that_see_other_checkpoints_are_named(tmp_path: Path) -> None:
    """Of machines that do not share the run's folder."""
    assert run_ranks(find_checkpoint, 2, tmp_path / "same", [7, 7]) == [7, 7]
    for message in run_ranks(find_checkpoint, 2, tmp_path / "other", [7, 5]):
        assert re.match(r"rank 1 on .* does not see the checkpoint of step 7, .* · .* · put the run's folder", message)
