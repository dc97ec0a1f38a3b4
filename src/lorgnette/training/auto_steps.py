"""Chooses the number of optimizer steps from the losses as they come: `train.epochs=auto`.

The learning rate rises in the warm-up and then stays constant until every example was trained on once and the loss is
low or no longer falls. Then it falls to 0 in DECAY_STEPS steps, and the training ends. A limit ends it in any case.
bench/small_data.py compares this rule with fixed numbers of steps (docs/guides/few-images.md).

A function of the losses alone: the learning rate of a step depends on the losses of all steps but the last, so that the
host may read losses one step late, and a resumed run takes the same steps. Knows nothing about models, and needs no
torch.
"""

import math
from statistics import fmean
from typing import Literal

EndReason = Literal["low", "flat", "limit"]
"""Why a training ends: the loss is low, it no longer falls, or the limit is reached."""

WARMUP_STEPS = 4
DECAY_STEPS = 8
LOW_LOSS = 0.15
"""Nats per label, the mean of the last NUM_RECENT steps."""
NUM_RECENT = 4
MIN_WINDOW = 8
MIN_FALL = 0.02
"""The loss no longer falls if the mean of a window is not this fraction below the mean of the window before. A window
is a number of whole epochs, at least MIN_WINDOW steps, so that both have the same labels."""
BASE_STEPS, MAX_EPOCHS = 64, 2
"""The limit: BASE_STEPS steps and MAX_EPOCHS epochs."""
NUM_EVALS = 16


class AutoSteps:
    """The steps of a training whose number is not known at its start.

    losses: (loss, number of labels) of each finished step; total_steps: at most, until `has_decided`.
    """

    def __init__(self, steps_per_epoch: int, *, warmup_steps: int = WARMUP_STEPS, max_steps: int | None = None) -> None:
        self.losses: list[tuple[float, int]] = []
        self.end_reason: EndReason = "limit"
        self.total_steps = compute_step_limit(steps_per_epoch, max_steps)
        self._steps_per_epoch, self._warmup_steps = steps_per_epoch, warmup_steps
        self._window = steps_per_epoch * math.ceil(MIN_WINDOW / steps_per_epoch)

    @property
    def has_decided(self) -> bool:
        """Whether a loss has ended the training, or will, before or at the limit."""
        return self.end_reason != "limit"

    def compute_rate_factor(self, step: int) -> float:
        """The fraction of the peak learning rate at `step` (from 0)."""
        rise = (step + 1) / (self._warmup_steps + 1)
        fall = (self.total_steps - step) / min(DECAY_STEPS, self.total_steps)
        return min(1.0, rise, fall)

    @property
    def recent_loss(self) -> float:
        """Of the last NUM_RECENT steps."""
        return self._mean(slice(-NUM_RECENT, None))

    def record_loss(self, loss: float, num_labels: int) -> None:
        """Take the loss of the next finished step. The rate falls from the next step but one at the earliest."""
        self.losses.append((loss, num_labels))
        if not self.has_decided and (reason := self._find_reason()):
            self.end_reason = reason
            self.total_steps = min(self.total_steps, len(self.losses) + 1 + DECAY_STEPS)

    def _find_reason(self) -> EndReason | None:
        count, window = len(self.losses), self._window
        if count < max(self._steps_per_epoch, self._warmup_steps, NUM_RECENT):
            return None
        if self.recent_loss < LOW_LOSS:
            return "low"
        if count >= 2 * window and count % window == 0:
            before, last = self._mean(slice(-2 * window, -window)), self._mean(slice(-window, None))
            return "flat" if last > before * (1 - MIN_FALL) else None
        return None

    def _mean(self, steps: slice) -> float:
        """The loss per label."""
        return fmean(*zip(*self.losses[steps], strict=True))


def compute_step_limit(steps_per_epoch: int, max_steps: int | None = None) -> int:
    """The most steps of a training that chooses their number. max_steps: a lower limit of the user's."""
    limit = BASE_STEPS + MAX_EPOCHS * steps_per_epoch
    return min(limit, max_steps or limit)


def compute_eval_steps(step_limit: int) -> int:
    """Steps between two evaluations: often enough that a good step is kept, and at most NUM_EVALS of them."""
    return max(MIN_WINDOW, math.ceil(step_limit / NUM_EVALS))
