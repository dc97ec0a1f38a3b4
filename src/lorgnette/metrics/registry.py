"""The metrics by name, and a set of texts scored by some of them.

docs/metrics.md names them with their sources, and says why METEOR is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics import tokenizers
from lorgnette.metrics.bleu import bleu
from lorgnette.metrics.bootstrap import NUM_RESAMPLES, Difference, compare_tallies, compute_intervals
from lorgnette.metrics.box_iou import box_accuracy, box_iou
from lorgnette.metrics.cider import cider_d
from lorgnette.metrics.edit_distance import anls, edit_distance, exact_match
from lorgnette.metrics.rouge import rouge_l
from lorgnette.metrics.score import Score, Tally
from lorgnette.metrics.token_f1 import token_f1


@dataclass(frozen=True, slots=True)
class Metric:
    """view: what of a text it looks at. part: which of the tallies, where the function counts several at once."""

    description: str
    compute: Callable[[Sequence[Any], Sequence[Sequence[Any]]], Tally | tuple[Tally, ...]]
    tokenize: Callable[[str], Any]
    better: Literal["higher", "lower"] = "higher"
    output_index: int = 0


METRICS: dict[str, Metric] = {
    "BLEU-1": Metric(
        "share of words that stand in a reference, short answers punished",
        bleu,
        tokenizers.tokenize_words,
        output_index=0,
    ),
    "BLEU-2": Metric("the same for words and pairs of words", bleu, tokenizers.tokenize_words, output_index=1),
    "BLEU-3": Metric("the same up to three words in a row", bleu, tokenizers.tokenize_words, output_index=2),
    "BLEU-4": Metric("the same up to four words in a row", bleu, tokenizers.tokenize_words, output_index=3),
    "ROUGE-L": Metric("longest common subsequence of words with the references", rouge_l, tokenizers.tokenize_words),
    "CIDEr-D": Metric(
        "likeness in the words that tell the pictures apart, 0 to 10", cider_d, tokenizers.tokenize_words
    ),
    "exact-match": Metric(
        "share of answers equal to a reference, white space aside", exact_match, tokenizers.normalize_whitespace
    ),
    "edit-distance": Metric(
        "characters to change, as a share of the text", edit_distance, tokenizers.normalize_whitespace, "lower"
    ),
    "ANLS": Metric("likeness in characters, 0 where less than half is right", anls, tokenizers.normalize_whitespace),
    "token-F1": Metric("words shared with the reference, order aside", token_f1, tokenizers.normalize_whitespace),
    "box-IoU": Metric("overlap of the boxes", box_iou, tokenizers.normalize_whitespace),
    "box-accuracy": Metric(
        "share of boxes that overlap by a half or more", box_accuracy, tokenizers.normalize_whitespace
    ),
    "latex-exact-match": Metric(
        "share of formulas equal to a reference, token by token", exact_match, tokenizers.tokenize_latex
    ),
    "latex-edit-distance": Metric(
        "tokens to change, as a share of the formula", edit_distance, tokenizers.tokenize_latex, "lower"
    ),
    "latex-BLEU": Metric("BLEU-4 of LaTeX tokens", bleu, tokenizers.tokenize_latex, output_index=3),
}
CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
LATEX_METRICS = ("latex-exact-match", "latex-edit-distance", "latex-BLEU")

_NO_EXAMPLES = "no examples"


def compute_scores(
    names: Iterable[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[Score]:
    """The metrics of one answer per example, held against the example's references; in the order of the names."""
    return build_scores(compute_tallies(names, hypotheses, references), num_resamples=num_resamples, seed=seed)


def build_scores(tallies: Mapping[str, Tally], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> list[Score]:
    """What the metrics add up, as values with their intervals."""
    meant = {name: one for name, one in tallies.items() if one.value is not None}
    sure: dict[str, tuple[float, float]] = {}
    if meant and all(len(one.counts) > 1 for one in meant.values()):
        sure = dict(zip(meant, compute_intervals(list(meant.values()), num_resamples, seed), strict=True))
    return [_build_score(name, one, sure.get(name)) for name, one in tallies.items()]


def compare_answers(
    names: Iterable[str],
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """The second system's answers against the first's, to the same examples."""
    wanted = list(names)
    before, after = (compute_tallies(wanted, answers, references) for answers in (first, second))
    return [compare_tallies(name, before[name], after[name], num_resamples, seed) for name in before]


def compute_tallies(
    names: Iterable[str], hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Tally]:
    """What each metric adds up. Every view of the texts is made once, and so is every count."""
    metrics = {name: get_metric(name) for name in names}
    for i, texts in enumerate(references):
        if not texts:
            raise LorgnetteError("has no reference", where=f"example {i + 1}", hint="leave it out, or give it one")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} answers to {len(references)} examples")
    views_of = {
        view: ([view(text) for text in hypotheses], [[view(text) for text in texts] for texts in references])
        for view in {metric.tokenize for metric in metrics.values()}
    }
    counts = {(metric.compute, metric.tokenize) for metric in metrics.values()}
    counted = {(function, view): function(*views_of[view]) for function, view in counts}
    made = {}
    for name, metric in metrics.items():
        found = counted[metric.compute, metric.tokenize]
        made[name] = found if isinstance(found, Tally) else found[metric.output_index]
    return made


def get_metric(name: str) -> Metric:
    """Raises UsageError for a name that is no metric's."""
    if name not in METRICS:
        raise UsageError("no such metric", where=name, hint=f"one of {', '.join(METRICS)}")
    return METRICS[name]


def _build_score(name: str, tally: Tally, interval: tuple[float, float] | None) -> Score:
    if tally.value is None:
        return Score(name, None, (), None, tally.note or _NO_EXAMPLES)
    return Score(name, tally.value, tuple(tally.per_example.tolist()), interval, tally.note)
