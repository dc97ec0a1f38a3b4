"""Parity 6: a run that was killed and resumed is, bit for bit, the run that never stopped."""

import hashlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.report import run_log

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


def words(tiny: Path, captions: Path, run: str, **changed: object) -> list[str]:
    settings = {
        "model": tiny, "data": captions, "run": run, "image_size": 56, "lora.rank": 4, "lora.dropout": 0.1,
        "train.batch_size": 4, "train.epochs": 8, "train.save_steps": 3, "train.logging_steps": 2,
        "train.learning_rate": 0.01, "report_to": "none", "predict.max_new_tokens": 4, "data.holdout": 2, **changed,
    }  # fmt: skip
    return ["train", *(f"{name}={value}" for name, value in settings.items())]


def adapter(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def curve(run: Path) -> list[tuple[object, ...]]:
    """What the log says that does not depend on the clock."""
    return [
        (r["kind"], r["step"], r.get("loss"), r.get("lr"), r.get("grad_norm"), r.get("eval_loss"))
        for r in run_log.read_log(run / "log.jsonl")
        if r["kind"] in ("train", "eval")
    ]


def stopped_at(process: "subprocess.Popen[str]", checkpoint: Path, with_signal: signal.Signals) -> str:
    """Send the signal once the checkpoint is there; what the process had said."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(with_signal)
    said, _ = process.communicate(timeout=60)
    return said


@pytest.fixture
def whole(tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run) -> Path:
    done = lorgnette(*words(tiny, captions, "whole"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "whole"


def test_killed_and_resumed_is_never_stopped(
    tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run, started: Start, whole: Path
) -> None:
    broken = tmp_path / "broken"
    stopped_at(started(*words(tiny, captions, "broken")), broken / "checkpoints" / "step-000003", signal.SIGKILL)
    assert not (broken / "adapter").exists()
    done = lorgnette("train", "--resume", "broken")
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stderr
    assert adapter(broken) == adapter(whole)
    assert curve(broken) == curve(whole)
    assert (broken / "predictions.jsonl").read_text() == (whole / "predictions.jsonl").read_text()


def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run, started: Start, whole: Path
) -> None:
    broken = tmp_path / "broken"
    process = started(*words(tiny, captions, "broken"))
    said = stopped_at(process, broken / "checkpoints" / "step-000003", signal.SIGINT)
    assert process.returncode == 130
    assert "lorgnette train --resume broken" in said
    assert "Traceback" not in said
    assert lorgnette("train", "--resume", "broken").returncode == 0
    assert adapter(broken) == adapter(whole)
    assert curve(broken) == curve(whole)


def test_another_seed_is_another_run(tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run, whole: Path) -> None:
    """Negative control: equality above is not for want of difference."""
    assert lorgnette(*words(tiny, captions, "other", seed=1)).returncode == 0
    assert adapter(tmp_path / "other") != adapter(whole)


def test_changed_data_is_refused(tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run, whole: Path) -> None:
    captions.write_text(captions.read_text().replace("snow", "rain"))
    done = lorgnette("train", "--resume", "whole")
    assert done.returncode == 1
    assert "changed since the run was started" in done.stderr
    assert "Traceback" not in done.stderr
