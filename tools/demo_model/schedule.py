"""The settings of a pretraining run, its progress, and the learning rate that follows from it.

Knows nothing about models or batches.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

WARMUP_FRACTION = 0.02
RESERVED_SECONDS = 25.0
"""Part of --minutes that is kept for the last evaluation and for saving."""


@dataclass(frozen=True)
class PretrainSettings:
    """The run ends after `steps` steps or, without them, after `minutes` from start to saved."""

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
        """The command that repeats this run, without its output folder and device."""
        options = [
            f"--{name.replace('_', '-')} {value}"
            for name, value in asdict(self).items()
            if name not in ("out", "device") and value is not None
        ]
        return " ".join(["python -m demo_model.pretrain --out DIR", *options])


@dataclass(slots=True)
class Progress:
    """The state of a run. The learning rate is a function of the fraction of the run that is done."""

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
        """A short linear warmup, then half a cosine to 0."""
        fraction = min(1.0, self.fraction_done)
        warmup = min(1.0, (fraction + 1e-4) / WARMUP_FRACTION)
        return self.settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * fraction))
