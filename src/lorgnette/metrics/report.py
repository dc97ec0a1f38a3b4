"""Answers of one or several to the same questions, in numbers: metrics, what lies between them, style. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorgnette.metrics import registry, tokenizers
from lorgnette.metrics.bootstrap import Difference, difference
from lorgnette.metrics.eval_prompts import Question
from lorgnette.metrics.held_out import direction, names_of
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.score import Score
from lorgnette.metrics.style import Style, style

Verdict = Literal["better", "worse", "unsure"]
MAIN = ("CIDEr-D", "latex-edit-distance", "ROUGE-L")
"""The one by which answers are sorted at first: the first of these that is measured and means something."""

CHANCE = 0.05
"""A difference with a p of this or more may be chance."""


@dataclass(frozen=True)
class Measured:
    """scores: [side][metric] over the questions that have a reference, whose places are `judged`. gaps: (side, over)
    → a difference for every metric: side minus over."""

    names: tuple[str, ...]
    judged: tuple[int, ...]
    scores: tuple[tuple[Score, ...], ...]
    gaps: dict[tuple[int, int], tuple[Difference, ...]]
    styles: tuple[Style, ...]
    reference_style: Style | None

    @property
    def main(self) -> str:
        """A metric's name; empty where none is measured."""
        meant = [score.name for score in self.scores[0] if score.value is not None] if self.scores else []
        return next((name for name in MAIN if name in meant), meant[0] if meant else "")


def measured(names: Sequence[str], asked: Sequence[Question], sides: Sequence[Sequence[str]]) -> Measured:
    """sides: of each that answered, an answer to every question. Without references there is style only."""
    judged = tuple(place for place, question in enumerate(asked) if question.references)
    references = [asked[place].references for place in judged]
    found = [registry.tally(names, [texts[place] for place in judged], references) for texts in sides] if judged else []
    pairs = [(one, other) for one in range(len(found)) for other in range(len(found)) if one != other]
    between = {
        (one, other): tuple(difference(name, found[other][name], found[one][name]) for name in names)
        for one, other in pairs
        if one > other
    }
    formulas = bool(names) and all(METRICS[name].view is tokenizers.latex for name in names)
    view = tokenizers.latex if formulas else tokenizers.words
    return Measured(
        names=tuple(names),
        judged=judged,
        scores=tuple(tuple(registry.scores(tallies)) for tallies in found),
        gaps={pair: between[pair] if pair in between else _turned(between[pair[::-1]]) for pair in pairs},
        styles=tuple(style(texts, view) for texts in sides),
        reference_style=style([text for texts in references for text in texts], view) if judged else None,
    )


def verdict(gap: Difference) -> Verdict:
    """Sure where the interval leaves out zero and p says so too: an interval resampled from a handful of examples is
    too narrow, while their p is about 2 / 2**n at the least."""
    if gap.interval is None or gap.chance is None or gap.chance >= CHANCE or gap.interval[0] <= 0 <= gap.interval[1]:
        return "unsure"
    return "better" if direction(gap.name) * gap.interval[0] > 0 else "worse"


def style_rows(found: Sequence[Style]) -> list[tuple[str, tuple[str, ...]]]:
    """What a style says, a value for each."""
    unit = found[0].unit
    return [
        (f"{unit}, on average", tuple(f"{one.words:.1f}" for one in found)),
        (f"{unit}, nine in ten", tuple(f"{one.words_range[0]:.0f} to {one.words_range[1]:.0f}" for one in found)),
        ("characters, on average", tuple(f"{one.characters:.0f}" for one in found)),
        ("sentences, on average", tuple(f"{one.sentences:.1f}" for one in found)),
        (f"different {unit} in all", tuple(str(one.vocabulary) for one in found)),
        ("begin with", tuple(", ".join(f"{word} {_share(part)}" for word, part in one.openings) for one in found)),
        ("end with a full stop", tuple(_share(one.stopped) for one in found)),
        ("say a sentence twice", tuple(_share(one.repeating) for one in found)),
        ("said more than once", tuple(_share(one.shared) for one in found)),
        ("empty", tuple(_share(one.empty) for one in found)),
        ("texts", tuple(str(one.texts) for one in found)),
    ]


def _turned(gaps: Sequence[Difference]) -> tuple[Difference, ...]:
    """The same seen from the other side."""
    return tuple(
        Difference(
            gap.name,
            None if gap.value is None else -gap.value,
            tuple(-value for value in gap.per_example),
            None if gap.interval is None else (-gap.interval[1], -gap.interval[0]),
            gap.chance,
        )
        for gap in gaps
    )


def wanted(given: str | None, default: Sequence[str]) -> tuple[str, ...]:
    """The metrics of `--metrics`, each once: names of metrics and groups, with commas. Raises UsageError for another
    word."""
    return tuple(default) if given is None else names_of((word.strip() for word in given.split(",")), "--metrics ")


def meaning(name: str) -> str:
    """What a metric says, in a few words."""
    return METRICS[name].meaning


def _share(part: float) -> str:
    return f"{100 * part:.0f} %"
