"""What a pretraining run is asked to do, and where it stands.

Knows nothing about models or batches.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

WARMUP_FRACTION = 0.02
RESERVED_SECONDS = 25.0
"""Seconds of --minutes kept for the last exam and for saving."""


@dataclass(frozen=True)
class PretrainSettings:
    """steps ends the run after so many steps; without it, minutes does (the whole run, start to saved)."""

    out: Path
    minutes: float = 9.0
    steps: int | None = None
    batch_size: int = 512
    learning_rate: float = 1e-3
    seed: int = 0
    num_workers: int = 15
    device: str = "auto"
    num_eval_scenes: int = 256
    log_seconds: float = 60.0

    @property
    def command(self) -> str:
        """The command that repeats this run, its output folder left open."""
        given = [
            f"--{name.replace('_', '-')} {value}" for name, value in asdict(self).items() if _is_in_command(name, value)
        ]
        return " ".join(["python -m demo_model.pretrain --out DIR", *given])


def _is_in_command(name: str, value: object) -> bool:
    return name not in ("out", "device") and value is not None


@dataclass(slots=True)
class Progress:
    """Where the run stands. The learning rate is a function of the share of the run that is done."""

    settings: PretrainSettings
    started_at: float
    step: int = 0
    loss: float = math.nan

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def fraction_done(self) -> float:
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.elapsed / max(1.0, self.settings.minutes * 60 - RESERVED_SECONDS)

    @property
    def learning_rate(self) -> float:
        """A short rise, then half a cosine down to nothing."""
        share = min(1.0, self.fraction_done)
        return (
            self.settings.learning_rate
            * min(1.0, (share + 1e-4) / WARMUP_FRACTION)
            * 0.5
            * (1 + math.cos(math.pi * share))
        )
