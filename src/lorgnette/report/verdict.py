"""Says in a few sentences whether a training worked: how the held-out answers changed, and how sure that is.

    rows, metrics, losses → judge_training → Verdict

A change counts only if chance does not explain it: the paired interval excludes 0 and p is below 0.05
(metrics.report.classify_difference). The limits below are conventions, and docs/guides/did-it-learn.md says them. A
function of its arguments alone, but for copies of an image, which it finds by their content.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorgnette.metrics.bootstrap import Difference, compare_tallies
from lorgnette.metrics.box_answers import list_known_boxes
from lorgnette.metrics.registry import METRICS, compute_tallies, number_images, select_sample_metric
from lorgnette.metrics.report import classify_difference, format_with_sign
from lorgnette.metrics.style import compute_style
from lorgnette.report.html.charts import format_number
from lorgnette.types import PredictionRow

VerdictKind = Literal["worked", "helped", "unchanged", "harm", "unsure"]
Points = Sequence[tuple[float, float]]
"""(step, value)"""
MATCHES = {
    "accuracy": "the answer is the right label",
    "json-exact-match": "every field of the answer is right",
    "latex-exact-match": "the formula equals {reference}",
    "exact-match": "the answer matches {reference} word for word",
}
"""Metrics that are 0 or 1 for each answer, and what 1 means. The first of them that is asked for counts."""
LARGE_SHARE = 0.5
"""It worked if this share of the answers that could improve did; if fewer, it helped a little."""
LARGE_GAIN = 0.1
"""And, where no answer is simply right or wrong, if the metric rose by at least this."""
MIN_CLOSER = 0.05
"""An answer is closer to its reference if its own score is better by at least this."""
MIN_SHOWN_SHARE = 0.1
"""Matches are not worth a sentence if fewer answers than this match, before and after."""
MIN_LOSS_CHANGE = 0.01
"""A smaller relative change of the eval loss is none."""
HARMFUL_LOSS_RISE = 0.1
"""A larger relative rise is harm, unless the answers are better."""
NOTABLE_LENGTH_RATIO = 1.5
MIN_REPETITION = 4
"""Answers repeat themselves if the references have this many times their distinct words, and fewer duplicates."""
FEW_IMAGES = 20
"""With fewer, an interval says too little."""
_UNSURE: VerdictKind = "unsure"


@dataclass(frozen=True, slots=True)
class Verdict:
    """headline: a few words; evidence, doubt: sentences."""

    kind: VerdictKind
    headline: str
    evidence: str
    doubt: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(part for part in (self.headline, self.evidence, self.doubt) if part)


@dataclass(frozen=True, slots=True)
class Change:
    """A metric before and after: its values, the paired difference, and what that means."""

    name: str
    before: float
    after: float
    difference: Difference

    @property
    def meaning(self) -> Literal["better", "worse", "unsure"]:
        return classify_difference(self.difference)

    @property
    def gain(self) -> float:
        """Positive if the answers are better."""
        return METRICS[self.name].sign * (self.after - self.before)

    @property
    def num_closer(self) -> int:
        return sum(METRICS[self.name].sign * value >= MIN_CLOSER for value in self.difference.per_example)

    @property
    def num_further(self) -> int:
        return sum(METRICS[self.name].sign * value <= -MIN_CLOSER for value in self.difference.per_example)


def judge_training(
    rows: Sequence[PredictionRow],
    metric_names: Sequence[str],
    losses: Points,
    evals: Points,
    *,
    is_step_chosen: bool = False,
    trained_on: Sequence[bool] = (),
) -> Verdict:
    """Judge the answers to the held-out prompts before and after a training.

    metric_names: without groups. losses, evals: training and eval loss; the eval loss at step 0 is that of the model
    before. is_step_chosen: these same rows chose the step at which the training ended. trained_on: whether each
    row's images were trained on.
    """
    scored = [row for row in rows if row.references and row.base is not None and row.tuned is not None]
    if not scored:
        return _judge_without_references(rows, losses)
    noun, rise, loss = name_rows(scored), *_describe_loss(evals)
    if all(row.base == row.tuned for row in scored):
        same = "The answer is" if len(scored) == 1 else f"All {len(scored)} answers are"
        headline = "Nothing changed." if loss and not rise else "No answer changed."
        return Verdict("unchanged", headline, f"{same} the same as before. {loss}".strip())

    match, graded = measure_changes(scored, metric_names)
    other = None if _has_moved(match, graded) else _find_other_change(scored, metric_names)
    evidence = _describe_answers(scored, match, graded, noun)
    if other is not None:
        values = f"{other.after:.2f}, {other.before:.2f} before"
        evidence += f" {other.name} ({METRICS[other.name].description}) is {values}."
    if rise > MIN_LOSS_CHANGE or "better" not in list_meanings(match, graded):
        evidence = f"{evidence} {loss}".strip()
    num_images = count_images(scored)
    doubts = list_doubts(match, graded, len(scored), noun, num_images)
    if is_step_chosen:
        doubts.append("The last step was chosen on these same rows, so new ones may do a little worse.")
    num_trained = sum(trained_on)
    if num_trained:
        doubts.append(
            f"{num_trained} of the {len(rows)} were also trained on, which does not show how it does on new images."
        )
    if 2 * num_trained >= len(rows):
        kind, headline = _UNSURE, "Cannot say: it was asked about what it was trained on."
    elif not any((row.tuned or "").strip() for row in scored):
        kind, headline = "harm", "It did harm: it answers nothing."
    else:
        kind, headline = _conclude(match, graded, other, rise, len(scored), noun, num_images)
    repetition = describe_repetition([row.tuned or "" for row in scored], [row.references for row in scored])
    if repetition and kind in ("worked", "helped"):
        doubts.append(repetition)
    return Verdict(kind, headline, evidence, " ".join(doubts))


def _conclude(
    match: Change, graded: Change | None, other: Change | None, rise: float, total: int, noun: str, num_images: int
) -> tuple[VerdictKind, str]:
    """The kind of the verdict, and its headline. other: a metric that moved if these two did not; rise: of the eval
    loss, relative."""
    meanings = list_meanings(match, graded) | ({other.meaning} if other else set())
    if {"better", "worse"} <= meanings:
        return _UNSURE, "Cannot say: one score rose, another fell."
    if "better" in meanings:
        if other is not None:
            return "helped", f"It helped a little: {other.name} improved."
        return ("worked", "It worked.") if _is_large(match, graded, total) else ("helped", "It helped a little.")
    if "worse" in meanings or rise > HARMFUL_LOSS_RISE:
        return "harm", "It did harm."
    if other is None and not _has_moved(match, graded):
        headline = "The answers changed, but no score moved."
    elif num_images < FEW_IMAGES:
        few = noun if num_images == total else "image" if num_images == 1 else "different images"
        headline = f"Cannot say yet: {num_images} held-out {few} {'is' if num_images == 1 else 'are'} too few."
    else:
        headline = "Cannot say: chance could explain the difference."
    return _UNSURE, headline


def _judge_without_references(rows: Sequence[PredictionRow], losses: Points) -> Verdict:
    what = "The held-out rows have no reference" if rows else "No image was held out"
    evidence = f"{what}, so nothing measures the answers."
    if len(losses) > 1:
        verb = "fell" if losses[-1][1] < losses[0][1] else "rose"
        evidence += (
            f" The training loss {verb} from {format_number(losses[0][1])} to {format_number(losses[-1][1])}, but it is"
            " of the images that it was trained on."
        )
    return Verdict("unsure", "Cannot say whether it worked.", evidence)


def measure_changes(rows: Sequence[PredictionRow], metric_names: Sequence[str]) -> tuple[Change, Change | None]:
    """(the metric that is 0 or 1 for each answer, the metric that says how close an answer is)."""
    graded_name = select_sample_metric(metric_names)
    changes = _measure(rows, [*(name for name in MATCHES if name in metric_names), "exact-match"])
    graded = _measure(rows, [graded_name] if graded_name and graded_name not in MATCHES else [])
    return changes[0], graded[0] if graded else None


def _find_other_change(rows: Sequence[PredictionRow], metric_names: Sequence[str]) -> Change | None:
    """One of the metrics that moved, preferably for the better by more than chance; None if none moved."""
    moved = [change for change in _measure(rows, metric_names) if any(change.difference.per_example)]
    return next((change for change in moved if change.meaning == "better"), moved[0] if moved else None)


def _measure(rows: Sequence[PredictionRow], names: Sequence[str]) -> list[Change]:
    """The changes of those metrics that are defined for the rows."""
    names, references, images = (
        list(dict.fromkeys(names)),
        [row.references for row in rows],
        [row.images for row in rows],
    )
    before_boxes, after_boxes = list_known_boxes(rows)
    before = compute_tallies(names, [row.base or "" for row in rows], references, images, before_boxes)
    after = compute_tallies(names, [row.tuned or "" for row in rows], references, images, after_boxes)
    changes = []
    for name in names:
        first, second = before[name].value, after[name].value
        if first is not None and second is not None:
            changes.append(Change(name, first, second, compare_tallies(name, before[name], after[name])))
    return changes


def name_rows(rows: Sequence[PredictionRow]) -> str:
    """ "image" if each row asks about an image of its own, else "question"; in the plural for several."""
    is_by_image = all(row.images for row in rows) and count_images(rows) == len(rows)
    return ("image" if is_by_image else "question") + ("" if len(rows) == 1 else "s")


def make_plural(noun: str) -> str:
    """Of what `name_rows` gives."""
    return noun.removesuffix("s") + "s"


def count_images(rows: Sequence[PredictionRow]) -> int:
    """How many rows have other images than all rows before; copies are one image. A row without images counts."""
    return len(set(number_images([row.images for row in rows])))


def _describe_loss(evals: Points) -> tuple[float, str]:
    """(how much the eval loss rose, as a share of the one before; that in a sentence). The log may lack the first."""
    if len(evals) < 2 or evals[0][0] != 0 or not evals[0][1]:
        return 0.0, ""
    before, after = evals[0][1], evals[-1][1]
    rise = after / before - 1
    if abs(rise) <= MIN_LOSS_CHANGE:
        return rise, f"The eval loss is {format_number(after)}, {format_number(before)} before."
    verb = "fell" if rise < 0 else "rose"
    return rise, f"The eval loss {verb} from {format_number(before)} to {format_number(after)}."


def _describe_answers(rows: Sequence[PredictionRow], match: Change, graded: Change | None, noun: str) -> str:
    """What changed, in counts."""
    total, sentences = len(rows), []
    num_before, num_after = round(match.before * total), round(match.after * total)
    is_match_shown = (
        not _has_moved(match, graded) or graded is None or max(num_before, num_after) >= max(1, MIN_SHOWN_SHARE * total)
    )
    if is_match_shown or match.meaning != "unsure":
        reference = "a reference" if any(len(row.references) > 1 for row in rows) else "the reference"
        text = MATCHES[match.name].format(reference=reference)
        sentences.append(
            f"After tuning, {text} in {num_after} of {total} held-out {make_plural(noun)} ({num_before} before)"
        )
    if graded and (not sentences or (graded.meaning != "unsure" and match.meaning == "unsure")):
        sentences.append(_describe_closeness(graded, total, noun, is_first=not sentences))
    length = _describe_length(rows)
    sentences[0] += f"; {length}" if length else ""
    return " ".join(f"{sentence}." for sentence in sentences)


def _describe_closeness(graded: Change, total: int, noun: str, *, is_first: bool) -> str:
    """How many answers are closer to their reference, and how many further from it."""
    closer, further = graded.num_closer, graded.num_further
    values = f"{graded.name} {graded.after:.2f}, {graded.before:.2f} before"
    if not closer and not further:
        start = "After tuning, no answer" if is_first else "No answer"
        return f"{start} to {total} held-out {noun} is much closer to its reference, or further from it ({values})"
    first, other = (
        ("closer to", f"further in {further}") if closer >= further else ("further from", f"closer in {closer}")
    )
    start = "After tuning, the answer is" if is_first else "The answer is"
    count = f"{max(closer, further)} of {total} held-out {make_plural(noun)}"
    return f"{start} {first} the reference in {count}, {other} ({values})"


def _describe_length(rows: Sequence[PredictionRow]) -> str:
    """How the length of the answers changed, if it did."""
    before = compute_style([row.base or "" for row in rows]).mean_words
    after = compute_style([row.tuned or "" for row in rows]).mean_words
    if not after or not before:
        return "" if after == before else "the answers are empty" if not after else "they were empty before"
    ratio = max(before, after) / min(before, after)
    if ratio < NOTABLE_LENGTH_RATIO:
        return ""
    factor = f"{ratio:.0f}" if ratio >= 2 else f"{ratio:.1f}".removesuffix(".0")
    change = "shorter" if after < before else "longer"
    unit = "word" if round(after) == 1 else "words"
    return f"answers are {factor} times {change} ({after:.0f} {unit}, {before:.0f} before)"


def describe_repetition(answers: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """A sentence if the answers repeat few words where the references vary: scores may rise by the commonest ones."""
    own, others = compute_style(answers), compute_style([texts[0] for texts in references])
    if own.vocabulary * MIN_REPETITION > others.vocabulary or own.duplicate_share <= others.duplicate_share:
        return ""  # which repeats as the references do
    words = f"{own.vocabulary} distinct {'word' if own.vocabulary == 1 else 'words'}"
    return f"But the answers repeat themselves: {words}, {others.vocabulary} in the references."


def list_doubts(
    match: Change, graded: Change | None, total: int, noun: str, num_images: int | None = None
) -> list[str]:
    """How sure that is. num_images: with different images, if they are fewer."""
    num_images = total if num_images is None else num_images
    doubts = _list_doubts(match, graded, total, noun, num_images)
    if num_images < total:
        images = "image" if num_images == 1 else "different images"
        doubts.append(
            f"The {total} {noun} are about {num_images} {images}, and that many is what chance is computed with."
        )
    return doubts


def _list_doubts(match: Change, graded: Change | None, total: int, noun: str, num_images: int) -> list[str]:
    is_graded = graded is not None and match.meaning == "unsure" and graded.meaning != "unsure"
    shown = graded if graded is not None and is_graded else match
    interval = shown.difference.interval
    if not _has_moved(match, graded):
        return []
    if shown.meaning == "unsure":
        return [f"With {total} {noun}, chance could do this."]
    if interval is None or shown.difference.shown_interval is None:
        return [f"All {total} {noun} agree{', but they are few' if num_images < FEW_IMAGES else ''}."]
    if is_graded:
        low_text, high_text = map(format_with_sign, interval)
        return [f"The change in {shown.name} lies between {low_text} and {high_text} (95 % interval)."]
    low, high = sorted(abs(round(100 * value)) for value in interval)
    more = "more" if shown.gain > 0 else "fewer"
    return [f"In 100 new {make_plural(noun)} like these, expect {low} to {high} {more} such answers (95 % interval)."]


def list_meanings(match: Change, graded: Change | None) -> set[str]:
    return {change.meaning for change in (match, graded) if change}


def _is_large(match: Change, graded: Change | None, total: int) -> bool:
    if match.meaning == "better":
        return match.gain >= LARGE_SHARE * (1 - match.before)
    assert graded is not None  # one of them is better
    return graded.num_closer - graded.num_further >= LARGE_SHARE * total and graded.gain >= LARGE_GAIN


def _has_moved(match: Change, graded: Change | None) -> bool:
    """Whether any answer has another score."""
    return any(any(change.difference.per_example) for change in (match, graded) if change)
