"""A prepared run: its folder exists and its data is loaded, so that a test can look at one stage alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorgnette.config import Settings
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.report.stage_timer import StageTimer
from lorgnette.report.trackers.tracker import Tracker
from lorgnette.training.data_module import TrainingData


@dataclass(frozen=True)
class PreparedRun:
    settings: Settings
    run_dir: RunDir
    data: TrainingData
    timer: StageTimer
    terminal: Terminal

    def build(self, resume_from: Path | None = None, **options: Any) -> Any:
        """The TrainingSetup on the CPU. options: of build_training."""
        import torch

        from lorgnette.training.setup import build_training

        return build_training(
            self.settings, self.data, torch.device("cpu"), torch.float32, resume_from=resume_from,
            timer=self.timer, terminal=self.terminal, **options,
        )  # fmt: skip

    def train(self, trackers: Sequence[Tracker] = ()) -> None:
        from lorgnette.training.run import run_training
        from lorgnette.training.user_callbacks import UserCallbacks

        run_training(
            self.settings, self.run_dir, self.data, self.data.processor, trackers, self.timer, self.terminal,
            UserCallbacks(),
        )  # fmt: skip


@pytest.fixture
def prepare_run(make_settings: Callable[..., Settings], terminal: Terminal) -> Callable[..., PreparedRun]:
    """prepare_run("train.learning_rate=1") → a run with these settings, on the CPU."""

    def prepare(*words: str) -> PreparedRun:
        settings = make_settings("device=cpu", *words)  # on a GPU the fast engine would train
        assert settings.run is not None
        run_dir = RunDir.create(settings.run)
        data = TrainingData.load(settings, terminal)
        return PreparedRun(data.choose_metrics(settings, terminal), run_dir, data, StageTimer(terminal), terminal)

    return prepare
