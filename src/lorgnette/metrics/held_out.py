"""The answers to the held-out examples in numbers, before and after."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.metrics import registry
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.score import Score as Measured
from lorgnette.report.html.page import ScoreRow
from lorgnette.report.predictions import PredictionRow
from lorgnette.types import Example

if TYPE_CHECKING:
    from lorgnette.demo.captions import Facts

METRIC_GROUPS: Mapping[str, tuple[str, ...]] = {
    "caption": registry.CAPTION_METRICS,
    "latex": registry.LATEX_METRICS,
    "demo": ("exact-match", *registry.CAPTION_METRICS),
    "none": (),
}
"""Words of predict.metrics and --metrics that stand for several; at a training's end, demo counts facts instead."""
SINGLE_ANSWER_METRICS = ("ROUGE-L", "latex-edit-distance")
"""The metrics that say most of a single answer, and of a few: the first of these that is measured."""


def expand_metric_names(names: Iterable[str], where: str = "predict.metrics=") -> tuple[str, ...]:
    """The metrics that the words name, groups by their members, each once. Raises UsageError for another word; said:
    where it was written."""
    members = [
        METRIC_GROUPS[word] if word in METRIC_GROUPS else (_check_metric(word, where, ", ".join(METRIC_GROUPS)),)
        for word in names
    ]
    return tuple(dict.fromkeys(member for group in members for member in group))


def select_sample_metric(names: Iterable[str]) -> str | None:
    """The metric that says most of a few answers, of those that the words name; None where they name none."""
    metrics = expand_metric_names(names)
    return next((name for name in SINGLE_ANSWER_METRICS if name in metrics), metrics[0] if metrics else None)


def get_best_model_metric(settings: Settings) -> str | None:
    """The metric that chooses the best step, None where the eval loss does. Raises UsageError for one there is not."""
    if settings.train.metric_for_best_model == "loss":
        return None
    return _check_metric(settings.train.metric_for_best_model, "train.metric_for_best_model=", "loss")


def check_best_model_metric(settings: Settings, held_out: Sequence[Example]) -> None:
    """Raises UsageError where a metric is to choose the best step and means nothing for what is held out."""
    name = get_best_model_metric(settings)
    if name is None:
        return
    held = [question.references for question in group_by_prompt(held_out) if question.references]
    if registry.compute_tallies([name], [texts[0] for texts in held], held)[name].value is None:
        raise build_undefined_metric_error(name)


def build_undefined_metric_error(name: str) -> UsageError:
    """What is wrong where a metric cannot choose."""
    return UsageError(
        "the metric has no value for what is held out",
        where=f"train.metric_for_best_model={name}",
        hint="hold out more (data.holdout=50), or name another metric",
    )


def select_tracked_metric(settings: Settings) -> str | None:
    """The metric that is watched during a training: the one that judges, or that says most of a few answers."""
    return get_best_model_metric(settings) or select_sample_metric(settings.predict.metrics)


def score_before_after(rows: Sequence[PredictionRow], names: Sequence[str]) -> list[ScoreRow]:
    """What the words name, over the rows that have a reference and both answers, each with its 95 % interval."""
    asked = _select_scored_rows(rows)
    if not asked:
        return []
    held = [row.references for row in asked]
    metrics = expand_metric_names(word for word in names if word != "demo")
    before, after = (
        registry.compute_scores(metrics, texts, held)
        for texts in ([row.base or "" for row in asked], [row.tuned or "" for row in asked])
    )
    found = [
        ScoreRow(one.name, format_score(one), format_score(other), _is_better(one, other), other.note or "")
        for one, other in zip(before, after, strict=True)
    ]
    return [*(_score_facts(asked) if "demo" in names else []), *found]


def compute_gains(rows: Sequence[PredictionRow], names: Sequence[str]) -> list[float | None]:
    """By how much each row's answer came closer to its references, in the finest metric; None where the row has no
    reference or lacks an answer, and everywhere where nothing is measured or the metric means nothing."""
    asked, name = _select_scored_rows(rows), select_sample_metric(names)
    if name is None or not asked:
        return [None] * len(rows)
    [found] = registry.compare_answers(
        [name], [row.base or "" for row in asked], [row.tuned or "" for row in asked], [row.references for row in asked]
    )
    sign = get_direction(name)
    gained = dict(zip((id(row) for row in asked), found.per_example, strict=found.value is not None))
    return [sign * gained[id(row)] if id(row) in gained else None for row in rows]


def get_direction(name: str) -> int:
    """1 where a higher value of the metric is better, else -1."""
    return 1 if METRICS[name].better == "higher" else -1


def format_score(score: Measured) -> str:
    """A value with its interval."""
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.interval[0]:.3f}–{score.interval[1]:.3f})"


def _check_metric(name: str, where: str, alternatives: str) -> str:
    try:
        registry.get_metric(name)
    except UsageError as error:
        raise UsageError(error.message, where=f"{where}{name}", hint=f"{alternatives}, or {error.hint}") from None
    return name


def _select_scored_rows(rows: Sequence[PredictionRow]) -> list[PredictionRow]:
    return [row for row in rows if row.references and row.base is not None and row.tuned is not None]


def _is_better(before: Measured, after: Measured) -> bool:
    if before.value is None or after.value is None:
        return False
    return get_direction(after.name) * (after.value - before.value) > 0


def _score_facts(rows: Sequence[PredictionRow]) -> list[ScoreRow]:
    """How many answers state what is to be seen on the demo's pictures, which the caption says in full, and how long
    they are."""
    from lorgnette.demo.captions import Facts

    rows = [row for row in rows if len(Facts.from_text(row.references[0]).kinds) == 2]
    if not rows:  # other data: nobody drew that
        return []
    truths = [Facts.from_text(row.references[0]) for row in rows]
    answers = [[row.base or "" for row in rows], [row.tuned or "" for row in rows]]
    said = [[Facts.from_text(text) for text in texts] for texts in answers]

    def counted(name: str, right: "Callable[[Facts, Facts], bool]") -> ScoreRow:
        before, after = (sum(map(right, found, truths)) for found in said)
        return ScoreRow(name, f"{before} of {len(rows)}", f"{after} of {len(rows)}", is_better=after > before)

    alike = [sum(text in row.references for row, text in zip(rows, texts, strict=True)) for texts in answers]
    words = [sum(len(text.split()) for text in texts) / len(rows) for texts in answers]
    return [
        counted("both objects right", lambda one, true: one.kinds == true.kinds),
        counted("both colours right", lambda one, true: one.colors == true.colors),
        counted("relation right", lambda one, true: one.relations == true.relations),
        counted(
            "all three right",
            lambda one, true: (one.kinds, one.colors, one.relations) == (true.kinds, true.colors, true.relations),
        ),
        ScoreRow(
            "word for word the reference",
            f"{alike[0]} of {len(rows)}",
            f"{alike[1]} of {len(rows)}",
            is_better=alike[1] > alike[0],
        ),
        ScoreRow("words an answer", f"{words[0]:.0f}", f"{words[1]:.0f}"),
    ]
