"""Answers of one or several to the same questions, in numbers: metrics, what lies between them, style. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorgnette.metrics import registry, tokenizers
from lorgnette.metrics.bootstrap import Difference, compare_tallies
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.held_out import expand_metric_names, get_direction
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.score import Score
from lorgnette.metrics.style import Style, compute_style

Verdict = Literal["better", "worse", "unsure"]
MAIN_METRICS = ("CIDEr-D", "latex-edit-distance", "ROUGE-L")
"""The one by which answers are sorted at first: the first of these that is measured and means something."""

SIGNIFICANCE_LEVEL = 0.05
"""A difference with a p of this or more may be chance."""


@dataclass(frozen=True)
class MetricReport:
    """scores: [side][metric] over the questions that have a reference, whose places are `judged`. gaps: (side, over)
    → a difference for every metric: side minus over."""

    metric_names: tuple[str, ...]
    scored_indices: tuple[int, ...]
    scores: tuple[tuple[Score, ...], ...]
    differences: dict[tuple[int, int], tuple[Difference, ...]]
    styles: tuple[Style, ...]
    reference_style: Style | None

    @property
    def main_metric(self) -> str:
        """A metric's name; empty where none is measured."""
        meant = [score.name for score in self.scores[0] if score.value is not None] if self.scores else []
        return next((name for name in MAIN_METRICS if name in meant), meant[0] if meant else "")


def compute_report(
    metric_names: Sequence[str], prompts: Sequence[EvalPrompt], answers: Sequence[Sequence[str]]
) -> MetricReport:
    """sides: of each that answered, an answer to every question. Without references there is style only."""
    judged = tuple(place for place, question in enumerate(prompts) if question.references)
    references = [prompts[place].references for place in judged]
    found = (
        [registry.compute_tallies(metric_names, [texts[place] for place in judged], references) for texts in answers]
        if judged
        else []
    )
    pairs = [(one, other) for one in range(len(found)) for other in range(len(found)) if one != other]
    between = {
        (one, other): tuple(compare_tallies(name, found[other][name], found[one][name]) for name in metric_names)
        for one, other in pairs
        if one > other
    }
    formulas = bool(metric_names) and all(METRICS[name].tokenize is tokenizers.tokenize_latex for name in metric_names)
    view = tokenizers.tokenize_latex if formulas else tokenizers.tokenize_words
    return MetricReport(
        metric_names=tuple(metric_names),
        scored_indices=judged,
        scores=tuple(tuple(registry.build_scores(tallies)) for tallies in found),
        differences={
            pair: between[pair] if pair in between else _negate_differences(between[pair[::-1]]) for pair in pairs
        },
        styles=tuple(compute_style(texts, view) for texts in answers),
        reference_style=compute_style([text for texts in references for text in texts], view) if judged else None,
    )


def classify_difference(difference: Difference) -> Verdict:
    """Sure where the interval leaves out zero and p says so too: an interval resampled from a handful of examples is
    too narrow, while their p is about 2 / 2**n at the least."""
    if (
        difference.interval is None
        or difference.p_value is None
        or difference.p_value >= SIGNIFICANCE_LEVEL
        or difference.interval[0] <= 0 <= difference.interval[1]
    ):
        return "unsure"
    return "better" if get_direction(difference.name) * difference.interval[0] > 0 else "worse"


def format_style_rows(styles: Sequence[Style]) -> list[tuple[str, tuple[str, ...]]]:
    """What a style says, a value for each."""
    unit = styles[0].unit
    return [
        (f"{unit}, on average", tuple(f"{one.mean_words:.1f}" for one in styles)),
        (f"{unit}, nine in ten", tuple(f"{one.words_range[0]:.0f} to {one.words_range[1]:.0f}" for one in styles)),
        ("characters, on average", tuple(f"{one.mean_characters:.0f}" for one in styles)),
        ("sentences, on average", tuple(f"{one.mean_sentences:.1f}" for one in styles)),
        (f"different {unit} in all", tuple(str(one.vocabulary) for one in styles)),
        (
            "begin with",
            tuple(", ".join(f"{word} {_format_percent(part)}" for word, part in one.first_words) for one in styles),
        ),
        ("end with a full stop", tuple(_format_percent(one.full_stop_share) for one in styles)),
        ("say a sentence twice", tuple(_format_percent(one.repeated_sentence_share) for one in styles)),
        ("said more than once", tuple(_format_percent(one.duplicate_share) for one in styles)),
        ("empty", tuple(_format_percent(one.empty_share) for one in styles)),
        ("texts", tuple(str(one.num_texts) for one in styles)),
    ]


def _negate_differences(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """The same seen from the other side."""
    return tuple(
        Difference(
            gap.name,
            None if gap.value is None else -gap.value,
            tuple(-value for value in gap.per_example),
            None if gap.interval is None else (-gap.interval[1], -gap.interval[0]),
            gap.p_value,
        )
        for gap in differences
    )


def parse_metric_names(names: str | None, default: Sequence[str]) -> tuple[str, ...]:
    """The metrics of `--metrics`, each once: names of metrics and groups, with commas. Raises UsageError for another
    word."""
    return (
        tuple(default)
        if names is None
        else expand_metric_names((word.strip() for word in names.split(",")), "--metrics ")
    )


def describe_metric(name: str) -> str:
    """What a metric says, in a few words."""
    return METRICS[name].description


def _format_percent(part: float) -> str:
    return f"{100 * part:.0f} %"
