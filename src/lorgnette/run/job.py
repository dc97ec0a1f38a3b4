"""A run as its parts are handed from stage to stage. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorgnette.config import Settings
from lorgnette.report.folder import RunFolder
from lorgnette.report.page import Score
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.terminal import Terminal
from lorgnette.run.material import Material
from lorgnette.run.stages import Stages

Scoring = Callable[[Sequence[PredictionRow]], Sequence[Score]]
"""Judges the answers to the held-out examples, for the terminal and the page."""


def unscored(rows: Sequence[PredictionRow]) -> Sequence[Score]:
    return ()


@dataclass(frozen=True)
class Job:
    folder: RunFolder
    settings: Settings
    material: Material
    stages: Stages
    terminal: Terminal
    score: Scoring = unscored
