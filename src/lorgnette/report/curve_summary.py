"""What a run's curves say, in sentences: still learning, learned, or learned by heart.

The tutorial watches the training loss and the gradient norm and stops at two epochs by eye; the loss on examples that
were held out says it without guessing.
"""

from collections.abc import Sequence

Points = Sequence[tuple[float, float]]
"""(step, value)"""

MIN_RELATIVE_RISE = 0.01
"""By how much an eval loss must stand above the lowest to count as a rise: a hundredth of it."""


def summarize_loss(losses: Points, evals: Points, norms: Points, best: str | None) -> list[str]:
    """losses and evals: training and held-out loss; norms: gradient norms; best: where the adapter of the lowest eval
    loss is kept, None where another number chose."""
    if len(evals) < 2:
        return ["Nothing was held out, so nothing can be said of over-fitting."] if losses and not evals else []
    low_step, low = min(evals[1:], key=lambda point: (point[1], point[0]))
    last_step, last = evals[-1]
    if evals[0][1] <= low:
        return [
            f"The eval loss never fell below the untuned model's ({evals[0][1]:.3g}): on the held-out examples the "
            "tuning did harm. A lower train.learning_rate, more examples or fewer steps may help."
        ]
    said = [f"The eval loss was lowest after step {low_step:.0f}: {low:.3g} ({evals[0][1]:.3g} before tuning)."]
    if last > low * (1 + MIN_RELATIVE_RISE):
        told = "while the training loss went on falling" if _is_falling(losses, low_step) else "after that"
        norm = ", and the gradient norm rose, as the tutorial warns," if _is_rising(norms, low_step) else ""
        said.append(
            f"It then rose to {last:.3g} {told}{norm}: the model was learning the examples by heart. "
            + (f"The adapter of step {low_step:.0f} is kept in {best}; fewer" if best else "Fewer")
            + " epochs, or train.early_stopping_patience, end a run there."
        )
    elif low_step == last_step:
        said.append("It was still falling at the end: more steps may improve it.")
    return said


def summarize_best_step(name: str, points: Points, best: str, *, higher_is_better: bool) -> list[str]:
    """Which step a metric chose. points: of the steps that might be chosen, the untuned model's first; higher: is
    better."""
    if len(points) < 2:
        return []
    sign = -1 if higher_is_better else 1
    step, value = min(points[1:], key=lambda point: (sign * point[1], point[0]))
    last = step == points[-1][0]
    kept = "the last, as saved" if last else f"its adapter is kept in {best}"
    return [f"By {name} step {step:.0f} was best: {value:.3g} ({points[0][1]:.3g} before tuning); {kept}."]


def _is_falling(points: Points, since: float) -> bool:
    values = [value for step, value in points if step >= since]
    return len(values) > 1 and values[-1] < values[0]


def _is_rising(points: Points, since: float) -> bool:
    values = [value for step, value in points if step >= since]
    return len(values) > 1 and values[-1] > values[0]
