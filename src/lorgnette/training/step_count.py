"""Says how many optimizer steps a training has and what that means, before and after it. Needs no torch.

`check`, `plan`, `train` and the report of a run use the same sentences.
"""

import math
from dataclasses import dataclass

from lorgnette.config import TrainSettings
from lorgnette.report.curve_summary import MIN_STEPS
from lorgnette.training.auto_steps import LOW_LOSS, AutoSteps
from lorgnette.training.sampler import compute_steps_per_epoch, compute_total_steps

END_KIND = "end"
"""Kind of the log record: {"kind": "end", "step": 41, "reason": "low", "text": …}; reason: null without epochs=auto"""

SKIPPED_STEP_KIND = "skipped step"
"""Kind of the log record: {"kind": "skipped step", "step": 2, "loss_scale": 32768.0, "text": …}"""

STOPPED_BY_CALLBACK = "stopped by the callback"
"""In the log's event when a callback of the user ended the training."""


@dataclass(frozen=True, slots=True)
class StepCount:
    """The steps of a training; with `train.epochs=auto`, total is a limit."""

    num_examples: int
    settings: TrainSettings

    @property
    def steps_per_epoch(self) -> int:
        return compute_steps_per_epoch(self.num_examples, self.settings.batch_size)

    @property
    def total(self) -> int:
        return compute_total_steps(self.steps_per_epoch, self.settings)

    @property
    def is_capped(self) -> bool:
        """Whether train.max_steps makes them fewer."""
        uncapped = StepCount(self.num_examples, self.settings.model_copy(update={"max_steps": None}))
        return self.total < uncapped.total

    def describe(self) -> str:
        """`at most 68: until the loss is low or no longer falls (train.epochs=auto); 26 examples, 16 in a step`"""
        settings, limit = self.settings, f"; train.max_steps={self.settings.max_steps}" if self.is_capped else ""
        examples = f"{_pluralize(self.num_examples, 'example')}, {settings.batch_size} in a step"
        if settings.epochs == "auto":
            end = "until the loss is low or no longer falls (train.epochs=auto)"
            return f"at most {self.total}: {end}; {examples}{limit}"
        return f"{self.total}: {_pluralize(settings.epochs, 'epoch')} of {examples}{limit}"

    @property
    def warning(self) -> str:
        """What too few steps mean, and what to do; empty if they suffice."""
        if self.total >= MIN_STEPS:
            return ""
        remedy = "raise or remove train.max_steps" if self.is_capped else "train.epochs=auto chooses enough"
        return f"only {_pluralize(self.total, 'optimizer step')}: too few to change much; {remedy}"

    def describe_end(self, step: int, auto_steps: AutoSteps | None, *, can_learn: bool = True) -> str:
        """Why the training ended after `step` steps. can_learn: more steps can help this model."""
        settings, steps = self.settings, _pluralize(step, "step")
        if step < (auto_steps.total_steps if auto_steps else self.total):
            return f"{steps}: no new best step for a while (train.early_stopping_patience)"
        if auto_steps is None or (self.is_capped and not auto_steps.has_decided):
            return f"{steps}: {f'train.max_steps={step}' if self.is_capped else _pluralize(settings.epochs, 'epoch')}"
        loss = f"{auto_steps.recent_loss:.3g}"
        if auto_steps.end_reason == "low":
            return f"{steps}: the loss is low, {loss} (train.epochs=auto ends soon after it is below {LOW_LOSS})"
        if auto_steps.end_reason == "flat":
            return f"{steps}: the loss no longer falls, {loss} (train.epochs=auto)"
        more = math.ceil(2 * step / self.steps_per_epoch)
        end = f"{steps}, the limit of train.epochs=auto: the training loss is still {loss}"
        if not can_learn:
            return end
        return (
            f"{end}; if the answers are not right yet, "
            f"a higher train.learning_rate, more examples or more steps (train.epochs={more}) may help"
        )


def _pluralize(count: object, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
