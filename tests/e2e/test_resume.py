"""Parity 6: a run that was killed and resumed is, bit for bit, the run that never stopped."""

import csv
import hashlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.report import run_log

COLORS = ["red", "green", "blue", "yellow", "black", "white", "magenta", "cyan"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]
Train = Callable[..., list[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with a CSV of 16 rows and 8 images."""
    path = tmp_path_factory.mktemp("resume")
    for color in COLORS:
        PIL.Image.new("RGB", (90, 70), color).save(path / f"{color}.png")
    with (path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([f"{color}.png", f"{size} {color} snow"] for color in COLORS for size in ("a little", "much"))
    return path


@pytest.fixture(scope="module")
def train_command(tiny: Path, folder: Path) -> Train:
    """train_command(run_folder) → the arguments of a training of 28 steps with dropout."""

    def build(run: Path, **changes: object) -> list[str]:
        settings = {
            "model": tiny, "data": folder / "captions.csv", "run": run, "image_size": 56, "lora.rank": 4,
            "lora.dropout": 0.1, "train.batch_size": 4, "train.epochs": 8, "train.save_steps": 3,
            "train.logging_steps": 2, "train.learning_rate": 0.01, "report_to": "none", "predict.max_new_tokens": 4,
            "data.holdout": 2, **changes,
        }  # fmt: skip
        return ["train", *(f"{name}={value}" for name, value in settings.items())]

    return build


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, train_command: Train, fork_command: Callable[..., list[str]]) -> Path:
    """The run that never stopped; trained once for all tests."""
    run = folder / "uninterrupted"
    command = fork_command("lorgnette", *train_command(run))
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return run


def hash_adapter(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def read_curve(run: Path) -> list[tuple[object, ...]]:
    """All numbers of the log that do not depend on the clock."""
    return [
        (r["kind"], r["step"], r.get("loss"), r.get("learning_rate"), r.get("grad_norm"), r.get("eval_loss"))
        for r in run_log.read_log(run / "log.jsonl")
        if r["kind"] in ("train", "eval")
    ]


def signal_at_checkpoint(process: "subprocess.Popen[str]", checkpoint: Path, signal_number: signal.Signals) -> str:
    """Send the signal as soon as the checkpoint exists. Returns the output of the process."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=60)
    return output


def test_killed_and_resumed_equals_never_stopped(
    folder: Path, train_command: Train, lorgnette: Run, start_process: Start, uninterrupted: Path
) -> None:
    run = folder / "killed"
    signal_at_checkpoint(start_process(*train_command(run)), run / "checkpoints" / "step-000003", signal.SIGKILL)
    assert not (run / "adapter").exists()
    result = lorgnette("train", "--resume", run)
    assert result.returncode == 0, result.stderr
    assert "resumed" in result.stderr
    assert hash_adapter(run) == hash_adapter(uninterrupted)
    assert read_curve(run) == read_curve(uninterrupted)
    assert (run / "predictions.jsonl").read_text() == (uninterrupted / "predictions.jsonl").read_text()


def test_ctrl_c_saves_and_prints_the_command_that_resumes(
    folder: Path, train_command: Train, lorgnette: Run, start_process: Start, uninterrupted: Path
) -> None:
    run = folder / "interrupted"
    process = start_process(*train_command(run))
    output = signal_at_checkpoint(process, run / "checkpoints" / "step-000003", signal.SIGINT)
    assert process.returncode == 130
    assert f"lorgnette train --resume {run}" in output
    assert "Traceback" not in output
    assert lorgnette("train", "--resume", run).returncode == 0
    assert hash_adapter(run) == hash_adapter(uninterrupted)
    assert read_curve(run) == read_curve(uninterrupted)


def test_another_seed_gives_another_adapter(
    folder: Path, train_command: Train, lorgnette: Run, uninterrupted: Path
) -> None:
    """Negative control: the adapters above could have differed."""
    assert lorgnette(*train_command(folder / "other", seed=1)).returncode == 0
    assert hash_adapter(folder / "other") != hash_adapter(uninterrupted)


def test_changed_data_is_refused(folder: Path, lorgnette: Run, uninterrupted: Path) -> None:
    captions = folder / "captions.csv"
    text = captions.read_text()
    captions.write_text(text.replace("snow", "rain"))
    try:
        result = lorgnette("train", "--resume", uninterrupted)
    finally:
        captions.write_text(text)
    assert result.returncode == 1
    assert "changed since the run was started" in result.stderr
    assert "Traceback" not in result.stderr
