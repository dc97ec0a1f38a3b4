"""The schedule of a pretraining run, and the command written down for it."""

from pathlib import Path

import pytest
from demo_model.course import RESERVED_SECONDS, PretrainSettings, Progress


def rate_at(share: float) -> float:
    progress = Progress(
        PretrainSettings(Path("x"), steps=10_000, learning_rate=1.0), started_at=0.0, step=round(share * 10_000)
    )
    return progress.learning_rate


def test_the_rate_rises_shortly_then_falls_to_nothing() -> None:
    assert rate_at(0) < 0.01
    assert rate_at(0.02) == pytest.approx(1.0, abs=0.01)
    assert rate_at(0.5) == pytest.approx(0.5, abs=0.01)
    assert rate_at(1.0) == pytest.approx(0.0, abs=1e-6)
    assert rate_at(1.5) == pytest.approx(0.0, abs=1e-6)


def test_without_steps_the_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(PretrainSettings(Path("x"), minutes=2), started_at=100.0)
    monkeypatch.setattr("time.monotonic", lambda: 100.0 + (120 - RESERVED_SECONDS) / 2)
    assert progress.fraction_done == pytest.approx(0.5)


def test_the_command_repeats_the_run_and_names_no_place_on_this_machine() -> None:
    settings = PretrainSettings(Path("/somewhere/secret"), steps=5, batch_size=8)
    assert "secret" not in settings.command
    assert "--steps 5 --batch 8" in settings.command
    assert "--steps" not in PretrainSettings(Path("x")).command
