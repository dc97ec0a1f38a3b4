"""The learning-rate schedule of a pretraining run, and the command that repeats it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from demo_model.schedule import RESERVED_SECONDS, PretrainSettings, Progress


def learning_rate_at(fraction: float) -> float:
    progress = Progress(
        PretrainSettings(Path("x"), steps=10_000, learning_rate=1.0), 0.0, step=round(fraction * 10_000)
    )
    return progress.learning_rate


def test_the_learning_rate_warms_up_then_falls_to_0() -> None:
    assert learning_rate_at(0) < 0.01
    assert learning_rate_at(0.02) == pytest.approx(1.0, abs=0.01)
    assert learning_rate_at(0.5) == pytest.approx(0.5, abs=0.01)
    assert learning_rate_at(1.0) == pytest.approx(0.0, abs=1e-6)
    assert learning_rate_at(1.5) == pytest.approx(0.0, abs=1e-6)


def test_without_steps_progress_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(PretrainSettings(Path("x"), minutes=2), started_at=100.0)
    clock = SimpleNamespace(monotonic=lambda: 100.0 + (120 - RESERVED_SECONDS) / 2)
    monkeypatch.setattr("demo_model.schedule.time", clock)
    assert progress.fraction_done == pytest.approx(0.5)


def test_the_command_repeats_the_run_and_names_no_local_path() -> None:
    settings = PretrainSettings(Path("/somewhere/secret"), steps=5, batch_size=8)
    assert "secret" not in settings.command
    assert "--steps 5 --batch-size 8" in settings.command
    assert "--steps" not in PretrainSettings(Path("x")).command
