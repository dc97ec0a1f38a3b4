"""Says in sentences what a run's curves show: still improving, converged, or overfitting."""

from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
"""(step, value)"""

MIN_RELATIVE_RISE = 0.01
"""An eval loss this much above the lowest, relative to it, has risen."""


def summarize_loss(losses: Points, evals: Points, norms: Points, best: str | None) -> list[str]:
    """Sentences about the eval loss.

    losses, evals, norms: training loss, eval loss, gradient norm; best: folder of the adapter with the lowest eval
    loss, None if a metric selects the best step.
    """
    if len(evals) < 2:
        return ["No examples are held out, so overfitting cannot be detected."] if losses and not evals else []
    baseline, (last_step, last) = evals[0][1], evals[-1]
    best_step, lowest = min(evals[1:], key=lambda point: (point[1], point[0]))
    if baseline <= lowest:
        return [
            f"The eval loss never fell below the base model's ({baseline:.3g}): fine-tuning made it worse on the "
            "held-out examples. Try a lower train.learning_rate, more examples or fewer steps."
        ]
    sentences = [
        f"The eval loss was lowest after step {best_step:.0f}: {lowest:.3g} ({baseline:.3g} before fine-tuning)."
    ]
    if last > lowest * (1 + MIN_RELATIVE_RISE):
        meanwhile = "while the training loss kept falling" if _compute_change(losses, best_step) < 0 else "after that"
        norm = " and the gradient norm rose" if _compute_change(norms, best_step) > 0 else ""
        saved = f"The adapter of step {best_step:.0f} is saved in {best}. " if best else ""
        sentences.append(
            f"It then rose to {last:.3g} {meanwhile}{norm}: overfitting. {saved}"
            "Fewer epochs, or train.early_stopping_patience, stop a run there."
        )
    elif best_step == last_step:
        sentences.append("It was still falling at the end: more steps may improve it.")
    return sentences


def summarize_best_step(name: str, points: Points, best: str, *, higher_is_better: bool) -> list[str]:
    """A sentence about the step that a metric selected. points: the base model's value first; best: the folder."""
    if len(points) < 2:
        return []
    sign = -1 if higher_is_better else 1
    step, value = min(points[1:], key=lambda point: (sign * point[1], point[0]))
    saved = "the last step" if step == points[-1][0] else f"its adapter is saved in {best}"
    return [f"Best {name}: {value:.3g} after step {step:.0f} ({points[0][1]:.3g} before fine-tuning); {saved}."]


def _compute_change(points: Points, since: float) -> float:
    """The last value minus the first from step `since`."""
    values = [value for step, value in points if step >= since]
    return values[-1] - values[0] if values else 0.0
