"""The answers to the held-out examples in numbers, before and after."""

from collections.abc import Sequence
from typing import Literal

from lorgnette.evaluate import metrics
from lorgnette.evaluate.score import Score as Measured
from lorgnette.report.page import Score
from lorgnette.report.predictions import PredictionRow

GROUPS = {"caption": metrics.CAPTION, "latex": metrics.LATEX, "none": ()}


def scored(rows: Sequence[PredictionRow], group: Literal["caption", "latex", "none"]) -> list[Score]:
    """The group's metrics over the rows that have a reference, each with its 95 % interval.

    Rows on the same picture and prompt are one example with several references, as caption metrics count them.
    """
    asked = [row for row in rows if row.reference and row.base is not None and row.tuned is not None]
    references: dict[tuple[object, ...], list[str]] = {}
    first: dict[tuple[object, ...], PredictionRow] = {}
    for row in asked:
        references.setdefault((*row.pictures, row.prompt), []).append(row.reference)
        first.setdefault((*row.pictures, row.prompt), row)
    if not first or not GROUPS[group]:
        return []
    held = list(references.values())
    before, after = (
        metrics.score(GROUPS[group], texts, held)
        for texts in ([row.base or "" for row in first.values()], [row.tuned or "" for row in first.values()])
    )
    return [(one.name, _shown(one), _shown(other)) for one, other in zip(before, after, strict=True)]


def _shown(score: Measured) -> str:
    if score.value is None:
        return "–"
    if score.interval is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.interval[0]:.3f}–{score.interval[1]:.3f})"
