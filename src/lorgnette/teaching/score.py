"""How well a model's suggestions did, counted from a journal's events.

    events → compute_score → Score

Each suggestion is in the journal before a person sees it, and the answer comes after it. So every answer tests a model
that was not trained on it: the prequential score of Dawid, Present Position and Potential Developments: Some Personal
Views: Statistical Theory: The Prequential Approach, J. R. Stat. Soc. A 1984. The window of the last answers: Gama,
Sebastião and Rodrigues, On Evaluating Stream Learning Algorithms, Machine Learning 2013.

An image has one verdict, that of its first answer. An answer that is undone, given again or mended later changes what
the model learns, and not the score. Intervals are Wilson's, of 90 %. They say how sure a share of independent answers
is; people who take what is offered make it too high, which only the blind comparison shows.

Pure functions: they read no clock and no file.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean, median
from typing import Any, NamedTuple

from lorgnette.errors import LorgnetteError
from lorgnette.metrics.bootstrap import compute_newcombe_interval, compute_wilson_interval
from lorgnette.metrics.edit_distance import levenshtein, normalized_levenshtein
from lorgnette.metrics.tokenizers import tokenize_words
from lorgnette.teaching.answer_text import normalize_text
from lorgnette.teaching.events import (
    Answered,
    Event,
    Mended,
    Opened,
    Reviewed,
    RoundDone,
    Suggested,
    Undone,
    UntunedShown,
)

WINDOW = 16
"""Counted answers of a share."""
LEVEL = 0.9
"""Of all intervals here, two-sided."""
MAX_SECONDS = 60.0
"""A longer time for an image is a pause."""
ENOUGH_SHARE = 0.8
ENOUGH_WINDOWS = (16, 32, 64)
"""It is enough if the lower bound of the share of the last 16, 32 or 64 is at least ENOUGH_SHARE: 16 of 16, 30 of 32 or
57 of 64. This is asked after each answer, so chance gets there too: within 96 answers a model that is right 7 of 10
times does in one of 12 runs (tests/teaching/test_score.py). So it is a reason to ask the person, not a proof."""
FLAT_ROUNDS = 2
MAX_FLAT_CHANGE = 2
MIN_EDIT_FALL = 0.1
"""The share is flat if two windows FLAT_ROUNDS rounds apart differ by at most MAX_FLAT_CHANGE answers, and if the edit
distance fell by less than this fraction."""
CLOSE_EDIT = 0.3
"""Suggestions with a smaller edit distance are close to what the person writes, though few are taken as they stand."""
FEW_TAKEN = 0.2
"""With a smaller share, the edit distance says more than the share if the suggestions are close. If they are not, the
model learns nothing."""
MIN_UNLEARNED = 8
"""Suggestions of the last rounds before it is said that they learn nothing."""
NUM_WRONG = 6
MAX_POINTS = 200
"""Of the curve on the page, which is about 300 pixels wide."""


class CurvePoint(NamedTuple):
    """The share of the last WINDOW of the first `answers` counted answers, and its interval."""

    answers: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Share:
    """How many of `count` suggestions were taken as they stand. low, high: the interval."""

    taken: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.taken / self.count

    def to_view(self) -> dict[str, Any]:
        """For JSON."""
        return {"taken": self.taken, "of": self.count, "share": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A suggestion and what the person made of it.

    round: of the suggestion's model; 0 is untuned. edit: 0 … 1, normalized edit distance over characters. word_edits:
    inserted, deleted and replaced words; num_words, num_characters: of the answer. keys: key presses.
    """

    id: str
    image: str
    round: int
    suggestion: str
    answer: str
    seconds: float
    keys: int
    taken: bool
    edit: float
    word_edits: int
    num_words: int
    num_characters: int


@dataclass(frozen=True, slots=True)
class Effort:
    """What a person still did, over several outcomes.

    edit: the mean. words_changed: word edits over words of the answers. keys_saved: 1 − key presses over characters of
    the answers; negative if there were more. median_seconds: of those that took at most MAX_SECONDS; None if none did.
    """

    edit: float
    words_changed: float
    keys_saved: float
    median_seconds: float | None

    def to_view(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "edit": self.edit,
            "words_changed": self.words_changed,
            "keys_saved": self.keys_saved,
            "seconds": self.median_seconds,
        }


@dataclass(frozen=True, slots=True)
class Plateau:
    """Two windows of WINDOW answers, the earlier one FLAT_ROUNDS rounds before, between which nothing improved."""

    taken: int
    taken_before: int
    edit: float
    edit_before: float


@dataclass(frozen=True, slots=True)
class BlindComparison:
    """Suggestions that were shown, and some that were not, since the first of the latter.

    blind.taken: those that equal what the person wrote without seeing them. low, high: interval of the shown share
    minus the blind one.
    """

    shown: Share | None
    blind: Share
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """A reviewer and the answers before the review. equal: unchanged answers. kappa: Cohen's, for labels only; None
    also if chance alone would agree always."""

    reviewer: str
    equal: Share
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a journal. All sequences are in the order of the answers.

    outcomes: of the counted answers. blind_outcomes: of the answers written without their suggestion. rounds: finished
    ones. agreements: one for each reviewer. answers: image → its present answer. num_untuned_shown: counted answers
    before which the person looked at what the untuned model says.
    """

    outcomes: tuple[Outcome, ...] = ()
    blind_outcomes: tuple[Outcome, ...] = ()
    rounds: tuple[RoundDone, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    blind: BlindComparison | None = None
    answers: Mapping[str, str] = field(default_factory=dict)
    num_untuned_shown: int = 0

    @property
    def taken(self) -> tuple[bool, ...]:
        return tuple(outcome.taken for outcome in self.outcomes)

    @property
    def edits(self) -> tuple[float, ...]:
        return tuple(outcome.edit for outcome in self.outcomes)

    @property
    def window(self) -> Share | None:
        """The share of the last WINDOW counted answers; of all, if there are fewer."""
        return count_taken(self.taken[-WINDOW:])

    @property
    def recent(self) -> Effort | None:
        """Over the last WINDOW counted answers."""
        return measure_effort(self.outcomes[-WINDOW:])

    @property
    def curve(self) -> list[CurvePoint]:
        """A point for each counted answer."""
        return self._build_curve(range(1, len(self.outcomes) + 1))

    def _build_curve(self, ends: Iterable[int]) -> list[CurvePoint]:
        taken, points = self.taken, list[CurvePoint]()
        for end in ends:
            share = count_taken(taken[max(0, end - WINDOW) : end])
            if share is not None:
                points.append(CurvePoint(end, share.value, share.low, share.high))
        return points

    @property
    def enough(self) -> Share | None:
        """The smallest window whose lower bound is at least ENOUGH_SHARE; None if no window's is."""
        for size in ENOUGH_WINDOWS:
            share = count_taken(self.taken[-size:]) if len(self.outcomes) >= size else None
            if share is not None and share.low >= ENOUGH_SHARE:
                return share
        return None

    @property
    def is_enough(self) -> bool:
        return self.enough is not None

    @property
    def flat(self) -> Plateau | None:
        """The last two windows, if more answers no longer help; else None.

        The windows do not overlap. The earlier one ends with a suggestion that is FLAT_ROUNDS rounds older than the
        last suggestion, or more.
        """
        if self.is_enough or not self.outcomes:
            return None
        newest = self.outcomes[-1].round - FLAT_ROUNDS
        end = max((i + 1 for i, old in enumerate(self.outcomes[:-WINDOW]) if old.round <= newest), default=0)
        if end < WINDOW:
            return None
        before, last = self.outcomes[end - WINDOW : end], self.outcomes[-WINDOW:]
        plateau = Plateau(
            sum(outcome.taken for outcome in last),
            sum(outcome.taken for outcome in before),
            fmean(outcome.edit for outcome in last),
            fmean(outcome.edit for outcome in before),
        )
        is_same = abs(plateau.taken - plateau.taken_before) <= MAX_FLAT_CHANGE
        return plateau if is_same and plateau.edit > plateau.edit_before * (1 - MIN_EDIT_FALL) else None

    @property
    def unlearned(self) -> bool:
        """Whether the model does not learn this yet.

        So it is if the loss of the last rounds did not get low, and if few of their suggestions were taken, and those
        are not close. The last rounds are two, or as many as have MIN_UNLEARNED suggestions: a round that has just
        ended has none. A few are taken by chance.
        """
        for first in reversed(self.rounds[:-1]):
            since = [outcome for outcome in self.outcomes if outcome.round >= first.round]
            if len(since) >= MIN_UNLEARNED:
                is_low = any(done.end_reason == "low" for done in self.rounds if done.round >= first.round)
                is_taken = fmean(outcome.taken for outcome in since) >= FEW_TAKEN
                return not is_low and not is_taken and fmean(outcome.edit for outcome in since) >= CLOSE_EDIT
        return False

    @property
    def is_edit_first(self) -> bool:
        """Whether the edit distance says more than the share: few are taken, though they are close."""
        share, recent = self.window, self.recent
        return share is not None and recent is not None and share.value < FEW_TAKEN and recent.edit < CLOSE_EDIT

    @property
    def wrong(self) -> list[Outcome]:
        """The last outcomes of tuned suggestions that were not taken, the newest first, at most NUM_WRONG."""
        found = [outcome for outcome in reversed(self.outcomes) if not outcome.taken and outcome.round > 0]
        return found[:NUM_WRONG]

    def to_view(self) -> dict[str, Any]:
        """For JSON. What has no value yet is null."""
        window, recent, enough, flat = self.window, self.recent, self.enough, self.flat
        ends = _choose_ends(len(self.outcomes))
        return {
            "counted": len(self.outcomes),
            "window": None if window is None else window.to_view(),
            "recent": None if recent is None else recent.to_view(),
            "is_edit_first": self.is_edit_first,
            "curve": [[end, *(round(value, 4) for value in point)] for end, *point in self._build_curve(ends)],
            "enough": None if enough is None else enough.to_view(),
            "flat": None if flat is None else {"taken": flat.taken, "before": flat.taken_before, "of": WINDOW},
            "unlearned": self.unlearned,
            "wrong": [outcome.id for outcome in self.wrong],
            "blind": None
            if self.blind is None
            else {
                "shown": None if self.blind.shown is None else self.blind.shown.to_view(),
                "blind": self.blind.blind.to_view(),
            },
            "reviews": [
                {"reviewer": agreement.reviewer, "equal": agreement.equal.to_view(), "kappa": agreement.kappa}
                for agreement in self.agreements
            ],
        }


@dataclass(slots=True)
class _Replay:
    """What the events so far say. answers: image → present answer; reviews: id → what was reviewed;
    untuned_shown: images."""

    labels: Sequence[str] = ()
    suggested: dict[str, Suggested] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    reviews: dict[str, "_Review"] = field(default_factory=dict)
    judged: set[str] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    blind_outcomes: list[Outcome] = field(default_factory=list)
    num_before_blind: int = 0
    untuned_shown: set[str] = field(default_factory=set)
    num_untuned_shown: int = 0

    def find(self, id: str) -> Suggested:
        """Raises LorgnetteError as `find_suggested`."""
        return find_suggested(self.suggested, id)


@dataclass(frozen=True, slots=True)
class _Review:
    image: str
    reviewer: str
    before: str
    after: str


def compute_score(events: Iterable[Event]) -> Score:
    """Count the events of a journal, in their order.

    Raises LorgnetteError if one names a suggestion that is not before it.
    """
    replay, rounds = _Replay(), []
    for event in events:
        match event:
            case Opened():
                replay.labels = event.labels
            case Suggested():
                replay.suggested[event.id] = event
            case UntunedShown():
                replay.untuned_shown.add(replay.find(event.id).image)
            case Answered():
                _take_answer(replay, event)
            case Mended():
                replay.answers[replay.find(event.id).image] = event.text
            case Reviewed():
                image = replay.find(event.id).image
                before = replay.answers.get(image, event.text)
                replay.reviews[event.id] = _Review(image, event.reviewer, before, event.text)
                replay.answers[image] = event.text
            case Undone():
                _undo(replay, event)
            case RoundDone():
                rounds.append(event)
            case _:  # the others change no number
                pass
    return Score(
        tuple(replay.outcomes),
        tuple(replay.blind_outcomes),
        tuple(rounds),
        _compare_reviews(replay),
        _compare_blind(replay),
        replay.answers,
        replay.num_untuned_shown,
    )


def find_suggested(suggested: Mapping[str, Suggested], id: str) -> Suggested:
    """The suggestion that an event names. Raises LorgnetteError if there was none with this id before."""
    if id not in suggested:
        message = f"an event names {id}, which was not suggested before"
        hint = "restore the file from a copy: lorgnette only appends to it"
        raise LorgnetteError(message, where="journal.jsonl", hint=hint)
    return suggested[id]


def _take_answer(replay: _Replay, event: Answered) -> None:
    suggested = replay.find(event.id)
    replay.answers[suggested.image] = event.text
    if suggested.image in replay.judged:
        return
    replay.judged.add(suggested.image)
    if suggested.text is None or suggested.round is None:
        return
    outcome = _judge(suggested.text, suggested.round, suggested, event)
    if suggested.blind:
        if suggested.pick in ("spread", "shuffled") and suggested.alike is None:
            if not replay.blind_outcomes:
                replay.num_before_blind = len(replay.outcomes)
            replay.blind_outcomes.append(outcome)
    elif event.counts:
        replay.outcomes.append(outcome)
        replay.num_untuned_shown += suggested.image in replay.untuned_shown


def _undo(replay: _Replay, event: Undone) -> None:
    image = replay.find(event.id).image
    review = replay.reviews.pop(event.id, None)
    if review is not None:
        replay.answers[image] = review.before
    elif replay.find(event.id).pick != "review":  # of a skip in a review, the answer stays
        replay.answers.pop(image, None)


def _judge(text: str, round: int, suggested: Suggested, event: Answered) -> Outcome:
    return Outcome(
        suggested.id,
        suggested.image,
        round,
        text,
        event.text,
        event.seconds,
        event.keys,
        *_compare_texts(text, event.text),
    )


def is_taken(suggestion: str, answer: str) -> bool:
    """Whether the suggestion was taken as it stands."""
    return normalize_text(suggestion) == normalize_text(answer)


@lru_cache(maxsize=20_000)
def _compare_texts(suggestion: str, answer: str) -> tuple[bool, float, int, int, int]:
    """(taken, edit, word edits, words, characters). Cached: all are counted after each answer."""
    suggestion, answer = normalize_text(suggestion), normalize_text(answer)
    suggested_words, words = tokenize_words(suggestion), tokenize_words(answer)
    edit = normalized_levenshtein(suggestion, answer)
    return suggestion == answer, edit, levenshtein(suggested_words, words), len(words), len(answer)


def _choose_ends(count: int) -> Sequence[int]:
    """At most MAX_POINTS of the numbers 1 … count, evenly spaced, the first and the last among them."""
    if count <= MAX_POINTS:
        return range(1, count + 1)
    return [1 + index * (count - 1) // (MAX_POINTS - 1) for index in range(MAX_POINTS)]


def count_taken(taken: Sequence[bool]) -> Share | None:
    """The share of these flags that are set, with its interval; None without flags."""
    return _compute_share(sum(taken), len(taken)) if taken else None


@lru_cache(maxsize=1000)
def _compute_share(taken: int, count: int) -> Share:
    """Cached: a curve has one for each answer."""
    return Share(taken, count, *compute_wilson_interval(taken / count, count, LEVEL))


def measure_effort(outcomes: Sequence[Outcome]) -> Effort | None:
    """What the person did over these outcomes; None without any."""
    if not outcomes:
        return None
    seconds = [outcome.seconds for outcome in outcomes if outcome.seconds <= MAX_SECONDS]
    num_words = sum(outcome.num_words for outcome in outcomes)
    num_characters = sum(outcome.num_characters for outcome in outcomes)
    return Effort(
        edit=fmean(outcome.edit for outcome in outcomes),
        words_changed=sum(outcome.word_edits for outcome in outcomes) / max(1, num_words),
        keys_saved=1 - sum(outcome.keys for outcome in outcomes) / max(1, num_characters),
        median_seconds=median(seconds) if seconds else None,
    )


def compute_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Agreement of two raters beyond chance: Cohen, A Coefficient of Agreement for Nominal Scales, 1960.

    pairs: the labels of each item. 1 is full agreement, and 0 as much as chance gives. None without pairs, and if both
    raters give all items one label.
    """
    first, second = (Counter(pair[rater] for pair in pairs) for rater in (0, 1))
    total = len(pairs)
    expected = sum(first[label] * second[label] for label in first)
    if not total or expected == total * total:
        return None
    expected_share = expected / (total * total)
    return (sum(a == b for a, b in pairs) / total - expected_share) / (1 - expected_share)


def _compare_reviews(replay: _Replay) -> tuple[Agreement, ...]:
    """An image that a person reviews again counts once, as it was the first time."""
    by_reviewer: dict[str, dict[str, tuple[str, str]]] = {}
    for review in replay.reviews.values():
        pair = normalize_text(review.before), normalize_text(review.after)
        by_reviewer.setdefault(review.reviewer, {}).setdefault(review.image, pair)
    agreements = []
    for reviewer, pair_by_image in by_reviewer.items():
        pairs = list(pair_by_image.values())
        equal = count_taken([before == after for before, after in pairs])
        if equal is not None:
            agreements.append(Agreement(reviewer, equal, compute_kappa(pairs) if replay.labels else None))
    return tuple(agreements)


def _compare_blind(replay: _Replay) -> BlindComparison | None:
    blind = count_taken([outcome.taken for outcome in replay.blind_outcomes])
    if blind is None:
        return None
    shown = count_taken([outcome.taken for outcome in replay.outcomes[replay.num_before_blind :]])
    if shown is None:
        return BlindComparison(None, blind, None, None)
    low, high = compute_newcombe_interval(shown.value, shown.count, blind.value, blind.count, LEVEL)
    return BlindComparison(shown, blind, low, high)
