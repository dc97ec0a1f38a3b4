"""A training on several GPUs says what they gain, as its plan does."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

import lorgnette
from lorgnette.config import Settings
from lorgnette.planning.gpus import GPUS
from lorgnette.report.console import Terminal
from lorgnette.training.data_module import TrainingData
from lorgnette.training.gpu_gain import describe_gain


def test_the_gain_is_the_plans(
    make_settings: Callable[..., Settings], terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, settings = Console(file=terminal_output, width=500), make_settings("train.batch_size=4")
    monkeypatch.setattr("lorgnette.planning.gpus.find_gpus", lambda: [GPUS["H100"]] * 2)
    data = TrainingData.load(settings, Terminal(console))
    lorgnette.plan(settings, gpus=2, console=console)
    lines = describe_gain(settings, data, 2)
    assert f"gain       H100: {lines[0]}\n           {lines[1]}\n" in terminal_output.getvalue()
    on_cpu = settings.model_copy(update={"device": "cpu"})
    assert describe_gain(settings, data, 1) == describe_gain(on_cpu, data, 2) == []
    monkeypatch.setattr("lorgnette.planning.gpus.find_gpus", lambda: [])
    assert describe_gain(settings, data, 2) == []
