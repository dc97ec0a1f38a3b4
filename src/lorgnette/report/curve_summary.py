"""Says in sentences what a run's curves show: still improving, converged, overfitting, unchanged, or worse."""

import math
from collections.abc import Sequence

from lorgnette.config import TrainSettings

Points = Sequence[tuple[float, float]]
"""(step, value)"""

WHEN_NEW, WHEN_CONTINUED = "before fine-tuning", "before this training"
"""The model before was the base model, or had an adapter that this training continues."""
MIN_RELATIVE_CHANGE = 0.01
"""An eval loss has changed if it differs from another by more than this share. Less is no verdict."""
MIN_OVERFITTING_RISE = 0.1
"""The model overfits if the eval loss rose again by more than this share of its fall."""
MIN_LEARNING_RATE = 1e-5
"""LoRA learns little in a few epochs below it."""
MIN_STEPS = 20
"""With fewer optimizer steps, their number is the likeliest reason that nothing changed."""


def summarize_loss(
    losses: Points,
    evals: Points,
    norms: Points,
    best: str | None,
    reason: str = "",
    *,
    can_learn: bool = True,
    when: str = WHEN_NEW,
) -> list[str]:
    """Sentences about the eval loss.

    losses, evals, norms: training loss, eval loss, gradient norm; best: folder of the adapter with the lowest eval
    loss, None if a metric selects the best step; reason: why nothing changed, if nothing did; can_learn: more steps can
    help; when: names the eval loss of step 0.
    """
    evals = [point for point in evals if math.isfinite(point[1])]
    if not evals:
        return ["No examples are held out, so overfitting cannot be detected."] if losses else []
    # The base model's loss is missing if the log was deleted before a resume.
    before = evals[0][1] if evals[0][0] == 0 else None
    evals = evals if before is None else evals[1:]
    if not evals:
        return []
    (last_step, last), (best_step, lowest) = evals[-1], min(evals, key=lambda point: (point[1], point[0]))
    if before is not None:
        if max(abs(value - before) for _, value in evals) <= MIN_RELATIVE_CHANGE * before:
            changed = "did not change" if all(value == before for _, value in evals) else "hardly changed"
            sentence = f"The eval loss {changed}: {last:.4g}, {before:.4g} {when}."
            return [sentence, *([f"The likeliest reason: {reason}."] if reason else [])]
        if before <= lowest:
            verdict = "rose" if last > before * (1 + MIN_RELATIVE_CHANGE) else "did not fall"
            worse = ": fine-tuning made it worse on the held-out examples" if verdict == "rose" else ""
            return [
                f"The eval loss {verdict}, {before:.3g} {when} and {last:.3g} after step {last_step:.0f}"
                f"{worse}. Try a lower train.learning_rate, more examples or fewer steps."
            ]
    compared = "" if before is None else f" ({before:.3g} {when})"
    sentences = [f"The eval loss was lowest after step {best_step:.0f}: {lowest:.3g}{compared}."]
    learned = lowest if before is None else before - lowest
    if last - lowest > max(MIN_OVERFITTING_RISE * learned, MIN_RELATIVE_CHANGE * lowest):
        meanwhile = "while the training loss kept falling" if _compute_change(losses, best_step) < 0 else "after that"
        norm = " and the gradient norm rose" if _compute_change(norms, best_step) > 0 else ""
        saved = f"The adapter of step {best_step:.0f} is saved in {best}. " if best else ""
        sentences.append(
            f"It then rose to {last:.3g} {meanwhile}{norm}: overfitting. {saved}"
            "Fewer epochs, or train.early_stopping_patience, stop a run there."
        )
    elif best_step == last_step and before is not None and can_learn:
        sentences.append("It was still falling at the end: more steps may improve it.")
    return sentences


def explain_no_change(settings: TrainSettings, num_steps: int) -> str:
    """The likeliest reason that a training of `num_steps` changed nothing, and what to do."""
    rate = f"train.learning_rate={settings.learning_rate:g}"
    warmup_steps = settings.count_warmup_steps(num_steps)
    if settings.epochs != "auto" and warmup_steps >= num_steps:
        highest = settings.learning_rate * max(0, num_steps - 1) / warmup_steps
        steps = "the only step is" if num_steps == 1 else f"all {num_steps} steps are"
        warm_up = f"{steps} in the warm-up (train.warmup_steps={warmup_steps})"
        return f"{warm_up}, where the learning rate reached {highest:.2g} of {rate}; lower train.warmup_steps"
    if settings.learning_rate < MIN_LEARNING_RATE:
        return f"{rate} is low; 1e-4 is usual with LoRA"
    if num_steps < MIN_STEPS:
        steps = f"{num_steps} optimizer {'step' if num_steps == 1 else 'steps'}"
        remedy = "train.epochs (auto chooses enough), or lower train.batch_size"
        return f"only {steps}; raise {'train.max_steps' if settings.max_steps == num_steps else remedy}"
    return f"the settings show none; try a higher learning rate ({rate}), or more epochs"


def summarize_best_step(
    name: str, points: Points, best: str, *, higher_is_better: bool, when: str = WHEN_NEW
) -> list[str]:
    """A sentence about the step that a metric selected. points: with the base model's value at step 0, unless the log
    was deleted before a resume; best: the folder."""
    before = next((value for step, value in points if step == 0), None)
    points = [point for point in points if point[0] > 0]
    if not points:
        return []
    sign = -1 if higher_is_better else 1
    step, value = min(points, key=lambda point: (sign * point[1], point[0]))
    if before is not None and sign * value >= sign * before:
        return [f"No step improved {name}: {before:.3g} {when}, at best {value:.3g} after step {step:.0f}."]
    compared = "" if before is None else f" ({before:.3g} {when})"
    saved = "the last step" if step == points[-1][0] else f"its adapter is saved in {best}"
    return [f"Best {name}: {value:.3g} after step {step:.0f}{compared}; {saved}."]


def _compute_change(points: Points, since: float) -> float:
    """The last value minus the first from step `since`."""
    values = [value for step, value in points if step >= since]
    return values[-1] - values[0] if values else 0.0
