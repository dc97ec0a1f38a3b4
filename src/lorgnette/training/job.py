"""A run as its parts are handed from stage to stage. No torch."""

from dataclasses import dataclass

from lorgnette.config import Settings
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunFolder
from lorgnette.report.stage_timer import Stages
from lorgnette.training.data_module import Material


@dataclass(frozen=True)
class Job:
    folder: RunFolder
    settings: Settings
    material: Material
    stages: Stages
    terminal: Terminal
