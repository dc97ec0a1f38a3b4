"""What a pretraining run is asked to do, and where it stands.

Knows nothing about models or batches.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

WARM_UP = 0.02
RESERVED = 25.0
"""Seconds of --minutes kept for the last exam and for saving."""


@dataclass(frozen=True)
class Settings:
    """steps ends the run after so many steps; without it, minutes does (the whole run, start to saved)."""

    out: Path
    minutes: float = 9.0
    steps: int | None = None
    batch: int = 512
    lr: float = 1e-3
    seed: int = 0
    workers: int = 15
    device: str = "auto"
    examined: int = 256
    report_seconds: float = 60.0

    @property
    def command(self) -> str:
        """The command that repeats this run, its output folder left open."""
        given = [f"--{name.replace('_', '-')} {value}" for name, value in asdict(self).items() if _written(name, value)]
        return " ".join(["python -m demo_model.pretrain --out DIR", *given])


def _written(name: str, value: object) -> bool:
    return name not in ("out", "device") and value is not None


@dataclass(slots=True)
class Progress:
    """Where the run stands. The learning rate is a function of the share of the run that is done."""

    settings: Settings
    began: float
    step: int = 0
    loss: float = math.nan

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.elapsed / max(1.0, self.settings.minutes * 60 - RESERVED)

    @property
    def rate(self) -> float:
        """A short rise, then half a cosine down to nothing."""
        share = min(1.0, self.share)
        return self.settings.lr * min(1.0, (share + 1e-4) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
