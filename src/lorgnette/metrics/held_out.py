"""The answers to the held-out examples in numbers, before and after."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.metrics import registry
from lorgnette.metrics.eval_prompts import questions
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.score import Score as Measured
from lorgnette.report.html.page import Score
from lorgnette.report.predictions import PredictionRow
from lorgnette.types import Example

if TYPE_CHECKING:
    from lorgnette.demo.captions import Stated

GROUPS: Mapping[str, tuple[str, ...]] = {
    "caption": registry.CAPTION,
    "latex": registry.LATEX,
    "demo": ("exact-match", *registry.CAPTION),
    "none": (),
}
"""Words of predict.metrics and --metrics that stand for several; at a training's end, demo counts facts instead."""
FINEST = ("ROUGE-L", "latex-edit-distance")
"""The metrics that say most of a single answer, and of a few: the first of these that is measured."""


def names_of(words: Iterable[str], said: str = "predict.metrics=") -> tuple[str, ...]:
    """The metrics that the words name, groups by their members, each once. Raises UsageError for another word; said:
    where it was written."""
    members = [GROUPS[word] if word in GROUPS else (_known(word, said, ", ".join(GROUPS)),) for word in words]
    return tuple(dict.fromkeys(name for names in members for name in names))


def finest(words: Iterable[str]) -> str | None:
    """The metric that says most of a few answers, of those that the words name; None where they name none."""
    names = names_of(words)
    return next((name for name in FINEST if name in names), names[0] if names else None)


def judge_of(settings: Settings) -> str | None:
    """The metric that chooses the best step, None where the eval loss does. Raises UsageError for one there is not."""
    if settings.train.best == "loss":
        return None
    return _known(settings.train.best, "train.best=", "loss")


def demand_judge(settings: Settings, held_out: Sequence[Example]) -> None:
    """Raises UsageError where a metric is to choose the best step and means nothing for what is held out."""
    name = judge_of(settings)
    if name is None:
        return
    held = [question.references for question in questions(held_out) if question.references]
    if registry.tally([name], [texts[0] for texts in held], held)[name].value is None:
        raise valueless(name)


def valueless(name: str) -> UsageError:
    """What is wrong where a metric cannot choose."""
    return UsageError(
        "the metric has no value for what is held out",
        where=f"train.best={name}",
        remedy="hold out more (data.holdout=50), or name another metric",
    )


def watched(settings: Settings) -> str | None:
    """The metric that is watched during a training: the one that judges, or that says most of a few answers."""
    return judge_of(settings) or finest(settings.predict.metrics)


def scored(rows: Sequence[PredictionRow], words: Sequence[str]) -> list[Score]:
    """What the words name, over the rows that have a reference and both answers, each with its 95 % interval."""
    asked = _judged(rows)
    if not asked:
        return []
    held = [row.references for row in asked]
    names = names_of(word for word in words if word != "demo")
    before, after = (
        registry.score(names, texts, held)
        for texts in ([row.base or "" for row in asked], [row.tuned or "" for row in asked])
    )
    found = [
        Score(one.name, shown(one), shown(other), _better(one, other), other.note or "")
        for one, other in zip(before, after, strict=True)
    ]
    return [*(_facts(asked) if "demo" in words else []), *found]


def gains(rows: Sequence[PredictionRow], words: Sequence[str]) -> list[float | None]:
    """By how much each row's answer came closer to its references, in the finest metric; None where the row has no
    reference or lacks an answer, and everywhere where nothing is measured or the metric means nothing."""
    asked, name = _judged(rows), finest(words)
    if name is None or not asked:
        return [None] * len(rows)
    [found] = registry.compare(
        [name], [row.base or "" for row in asked], [row.tuned or "" for row in asked], [row.references for row in asked]
    )
    sign = direction(name)
    gained = dict(zip((id(row) for row in asked), found.per_example, strict=found.value is not None))
    return [sign * gained[id(row)] if id(row) in gained else None for row in rows]


def direction(name: str) -> int:
    """1 where a higher value of the metric is better, else -1."""
    return 1 if METRICS[name].better == "higher" else -1


def shown(score: Measured) -> str:
    """A value with its interval."""
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.interval[0]:.3f}–{score.interval[1]:.3f})"


def _known(name: str, said: str, others: str) -> str:
    try:
        registry.known(name)
    except UsageError as error:
        raise UsageError(error.what, where=f"{said}{name}", remedy=f"{others}, or {error.remedy}") from None
    return name


def _judged(rows: Sequence[PredictionRow]) -> list[PredictionRow]:
    return [row for row in rows if row.references and row.base is not None and row.tuned is not None]


def _better(before: Measured, after: Measured) -> bool:
    if before.value is None or after.value is None:
        return False
    return direction(after.name) * (after.value - before.value) > 0


def _facts(rows: Sequence[PredictionRow]) -> list[Score]:
    """How many answers state what is to be seen on the demo's pictures, which the caption says in full, and how long
    they are."""
    from lorgnette.demo.captions import Stated

    rows = [row for row in rows if len(Stated.read(row.references[0]).kinds) == 2]
    if not rows:  # other data: nobody drew that
        return []
    truths = [Stated.read(row.references[0]) for row in rows]
    answers = [[row.base or "" for row in rows], [row.tuned or "" for row in rows]]
    said = [[Stated.read(text) for text in texts] for texts in answers]

    def counted(name: str, right: "Callable[[Stated, Stated], bool]") -> Score:
        before, after = (sum(map(right, found, truths)) for found in said)
        return Score(name, f"{before} of {len(rows)}", f"{after} of {len(rows)}", better=after > before)

    alike = [sum(text in row.references for row, text in zip(rows, texts, strict=True)) for texts in answers]
    words = [sum(len(text.split()) for text in texts) / len(rows) for texts in answers]
    return [
        counted("both objects right", lambda one, true: one.kinds == true.kinds),
        counted("both colours right", lambda one, true: one.colours == true.colours),
        counted("relation right", lambda one, true: one.relations == true.relations),
        counted(
            "all three right",
            lambda one, true: (one.kinds, one.colours, one.relations) == (true.kinds, true.colours, true.relations),
        ),
        Score(
            "word for word the reference",
            f"{alike[0]} of {len(rows)}",
            f"{alike[1]} of {len(rows)}",
            better=alike[1] > alike[0],
        ),
        Score("words an answer", f"{words[0]:.0f}", f"{words[1]:.0f}"),
    ]
