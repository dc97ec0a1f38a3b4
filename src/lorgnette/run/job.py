"""A run as its parts are handed from stage to stage. No torch."""

from dataclasses import dataclass

from lorgnette.config import Settings
from lorgnette.report.folder import RunFolder
from lorgnette.report.terminal import Terminal
from lorgnette.run.material import Material
from lorgnette.run.stages import Stages


@dataclass(frozen=True)
class Job:
    folder: RunFolder
    settings: Settings
    material: Material
    stages: Stages
    terminal: Terminal
