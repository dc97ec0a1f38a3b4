"""A run as its parts are handed from stage to stage. No torch."""

from dataclasses import dataclass

from lorgnette.config import Settings
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.report.stage_timer import StageTimer
from lorgnette.training.data_module import TrainingData


@dataclass(frozen=True)
class Job:
    folder: RunDir
    settings: Settings
    material: TrainingData
    stages: StageTimer
    terminal: Terminal
