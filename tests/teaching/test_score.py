"""The score of a journal, against values worked out by hand and formulas written anew."""

import json
import math
import random
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.teaching.events import (
    Answered,
    Event,
    Mended,
    Opened,
    Reviewed,
    RoundBegun,
    RoundDone,
    Skipped,
    Suggested,
    Undone,
    UntunedShown,
)
from lorgnette.teaching.score import (
    MAX_POINTS,
    Outcome,
    Score,
    compute_kappa,
    compute_score,
    count_taken,
    is_taken,
)

Z90 = 1.6448536269514722


class Script:
    """A journal as it grows. Each answer is to an image of its own, unless one is named."""

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.events: list[Event] = [
            Opened(
                t=0.0, folder="photos", model="m", prompt="p", seed=0, num_images=9, labels=list(labels), version="1"
            )
        ]
        self.round = 0

    def suggest(self, text: str | None, **fields: Any) -> str:
        number = sum(isinstance(event, Suggested) for event in self.events) + 1
        values: dict[str, Any] = {
            "image": f"{number}.jpg", "sha": "0", "round": self.round, "pick": "shuffled", "surety": -0.1,
            "blind": False, "alike": None,
        }  # fmt: skip
        self.events.append(Suggested(t=1.0, id=f"s{number}", text=text, **(values | fields)))
        return f"s{number}"

    def answer(self, id: str, text: str, *, seconds: float = 2.0, keys: int = 0, counts: bool = True) -> None:
        self.events.append(Answered(t=2.0, id=id, text=text, seconds=seconds, keys=keys, counts=counts))

    def ask(self, suggestion: str | None, answer: str, *, seconds: float = 2.0, keys: int = 0, **fields: Any) -> str:
        id = self.suggest(suggestion, **fields)
        counts = suggestion is not None and not fields.get("blind") and fields.get("pick") != "hardest"
        self.answer(id, answer, seconds=seconds, keys=keys, counts=counts)
        return id

    def ask_many(self, taken: Sequence[bool], wrong: str = "zzzz") -> None:
        for flag in taken:
            self.ask("a cat" if flag else wrong, "a cat")

    def finish_round(self, end_reason: str = "low") -> None:
        self.round += 1
        self.events += [
            RoundBegun(t=3.0, round=self.round, answers=8, digest="d"),
            RoundDone(t=3.0, round=self.round, answers=8, steps=64, loss=0.1, seconds=1.0, end_reason=end_reason),
        ]

    @property
    def score(self) -> Score:
        return compute_score(self.events)


def compute_wilson_by_hand(taken: int, count: int) -> tuple[float, float]:
    """As statsmodels' proportion_confint(taken, count, alpha=0.1, method="wilson") computes it: the two p for which
    (share − p)² = z² p (1 − p) / count."""
    a, b, c = 1 + Z90**2 / count, -(2 * taken / count + Z90**2 / count), (taken / count) ** 2
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_a_suggestion_is_taken_if_it_differs_in_outer_spaces_and_composition_only() -> None:
    assert is_taken("  a café\n", unicodedata.normalize("NFD", "a café"))
    assert not is_taken("A café", "a café")
    assert not is_taken("a café.", "a café")
    assert not is_taken("a  café", "a café")


def test_an_empty_journal_has_no_numbers() -> None:
    score = compute_score([])
    assert (score.window, score.recent, score.blind, score.enough, score.flat) == (None,) * 5
    assert not score.unlearned
    view = score.to_view()
    assert (view["counted"], view["window"], view["curve"]) == (0, None, [])
    json.dumps(view, allow_nan=False)


def test_the_window_is_the_last_sixteen_counted_answers() -> None:
    script = Script()
    script.ask_many([True] * 3 + [False] * 10 + [True] * 6)
    window = script.score.window
    assert window is not None
    assert (window.taken, window.count) == (6, 16)  # the first three have left it
    assert (window.low, window.high) == pytest.approx(compute_wilson_by_hand(6, 16), abs=1e-12)
    assert script.score.to_view()["window"]["share"] == 6 / 16


def test_the_curve_on_the_page_keeps_its_ends() -> None:
    outcome = Outcome("s1", "a.png", 0, "A", "A", 1.0, 0, True, 0.0, 0, 1, 1)
    for count in (1, MAX_POINTS, MAX_POINTS + 1, 3000):
        answers = [point[0] for point in Score((outcome,) * count).to_view()["curve"]]
        assert (answers[0], answers[-1], len(answers)) == (1, count, min(count, MAX_POINTS))
        steps = {after - before for before, after in pairwise(answers)}
        assert max(steps, default=0) - min(steps, default=0) <= 1


def test_each_counted_answer_is_a_point_of_the_curve() -> None:
    script, taken = Script(), [False, True, True, False] * 6
    script.ask_many(taken)
    curve = script.score.curve
    assert [point.answers for point in curve] == list(range(1, 25))
    for end, share, low, high in curve:
        part = taken[:end][-16:]
        assert share == sum(part) / len(part)
        assert (low, high) == pytest.approx(compute_wilson_by_hand(sum(part), len(part)), abs=1e-12)


def test_effort_is_worked_out_by_hand() -> None:
    script = Script()
    script.ask("a small car", "a big car", seconds=4, keys=3)  # small → big: 5 of 11 characters, 1 word of 3
    script.ask("a cat", "a cat", seconds=1, keys=0)
    script.ask("a dog", "the two dogs", seconds=61, keys=12)  # a pause: its time is left out
    score = script.score
    assert score.taken == (False, True, False)
    assert score.edits == pytest.approx((5 / 11, 0, 8 / 12))
    recent = score.recent
    assert recent is not None
    assert recent.edit == pytest.approx((5 / 11 + 0 + 8 / 12) / 3)
    assert recent.words_changed == pytest.approx((1 + 0 + 3) / (3 + 2 + 3))
    assert recent.keys_saved == pytest.approx(1 - 15 / (9 + 5 + 12))
    assert recent.median_seconds == 2.5


def test_words_of_chinese_are_characters() -> None:
    script = Script()
    script.ask("一只红色的猫。", "一只黑色的猫。")
    recent = script.score.recent
    assert recent is not None
    assert recent.words_changed == pytest.approx(1 / 6)
    assert recent.edit == pytest.approx(1 / 7)


def test_effort_is_that_of_the_last_sixteen() -> None:
    script = Script()
    for seconds in [50.0] * 16 + [3.0] * 15 + [20.0]:
        script.ask("a cat", "a cat", seconds=seconds)
    recent = script.score.recent
    assert recent is not None
    assert recent.median_seconds == 3


def test_what_is_no_test_of_the_model_is_not_counted() -> None:
    script = Script()
    script.ask(None, "written before the model was there", round=None)
    script.ask("a cat", "a cat", pick="hardest")
    script.ask("a cat", "a cat", blind=True)
    id = script.suggest("a cat", alike="other.jpg")
    script.answer(id, "a cat", counts=False)
    assert script.score.outcomes == ()


def test_looks_at_the_untuned_model_are_told_and_change_no_verdict() -> None:
    """Counted are those before an answer that counts."""
    script, plain = Script(), Script()
    for number in range(4):
        for each in (script, plain):
            id = each.suggest("a cat", blind=number == 3)
            if each is script and number != 1:
                each.events.append(UntunedShown(t=1.5, id=id, text="a long text about a cat"))
            each.answer(id, "a cat", counts=number != 3)
        if number == 1:  # after the answer
            script.events.append(UntunedShown(t=3.0, id=id, text="a long text about a cat"))
    score, expected = compute_score(script.events), compute_score(plain.events)
    assert (score.num_untuned_shown, expected.num_untuned_shown) == (2, 0)
    assert score.outcomes == expected.outcomes
    assert score.to_view() == expected.to_view()


def test_the_first_verdict_of_an_image_stays() -> None:
    script = Script()
    first = script.ask("a dog", "a cat")
    script.events.append(Undone(t=3.0, id=first))
    script.answer(first, "a dog")  # asked again, and now taken
    script.ask("a dog", "a dog", image="1.jpg")  # and suggested anew
    second = script.ask("a cat", "a cat")
    script.events.append(Mended(t=3.0, id=second, text="a dog"))
    assert script.score.taken == (False, True)


def test_an_image_whose_first_answer_does_not_count_never_counts() -> None:
    """The model may have been trained on that answer."""
    script = Script()
    first = script.ask(None, "a cat", round=None)
    script.events.append(Undone(t=3.0, id=first))
    script.ask("a cat", "a cat", image="1.jpg")
    assert script.score.outcomes == ()


def test_a_skipped_image_counts_once_it_is_answered() -> None:
    script = Script()
    first = script.suggest("a cat")
    script.events.append(Skipped(t=2.0, id=first, reason="user"))
    assert script.score.outcomes == ()
    script.ask("a cat", "a cat", image="1.jpg")
    assert script.score.taken == (True,)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([True] * 16, (16, 16)),
        ([True] * 15, None),
        ([False] + [True] * 15, None),
        ([True] * 14 + [False] + [True] * 8 + [False] + [True] * 8, (30, 32)),
        ([True] * 13 + [False] * 2 + [True] * 8 + [False] + [True] * 8, None),
    ],
)
def test_enough_is_sixteen_of_sixteen_or_thirty_of_thirty_two(
    taken: list[bool], expected: tuple[int, int] | None
) -> None:
    script = Script()
    script.ask_many(taken)
    enough = script.score.enough
    assert (enough and (enough.taken, enough.count)) == expected
    assert script.score.is_enough == (expected is not None)


def test_chance_reaches_enough_as_often_as_the_guide_says() -> None:
    """docs/guides/teach.md: right 7 of 10 times, within 96 answers, in about one of 12 runs; right 6 of 10, in one of a
    hundred."""

    def count_runs(probability: float) -> int:
        rng, num_reached = random.Random(0), 0
        for _ in range(600):
            taken = [rng.random() < probability for _ in range(96)]
            windows = [(16, 16), (32, 30), (64, 57)]
            num_reached += any(
                sum(taken[end - size : end]) >= least for size, least in windows for end in range(size, 97)
            )
        return num_reached

    for size, least in [(16, 16), (32, 30), (64, 57)]:  # the windows above are those of the score
        for count in (least - 1, least):
            share = count_taken([True] * count + [False] * (size - count))
            assert share is not None
            assert (share.low >= 0.8) == (count == least)
    assert count_runs(0.7) == pytest.approx(600 / 12, rel=0.3)
    assert count_runs(0.6) <= 12


def make_rounds(shares: Sequence[int], wrong: Sequence[str] | None = None) -> Script:
    """Rounds after every 8 answers, of which so many were taken. wrong: the suggestion of the others."""
    script = Script()
    script.finish_round()
    for i, taken in enumerate(shares):
        script.ask_many([True] * taken + [False] * (8 - taken), wrong[i] if wrong else "zzzz")
        script.finish_round()
    return script


def test_flat_compares_two_windows_two_rounds_apart() -> None:
    plateau = make_rounds([5, 5, 4, 5]).score.flat
    assert plateau is not None
    assert (plateau.taken, plateau.taken_before) == (9, 10)
    assert make_rounds([5, 5, 4, 5]).score.to_view()["flat"] == {"taken": 9, "before": 10, "of": 16}


def test_more_taken_or_a_lower_edit_distance_is_not_flat() -> None:
    worse = ["a cab", "a cab", "zzzz", "zzzz"]
    assert make_rounds([4, 4, 6, 5], worse).score.flat is None  # 8 → 11 of 16
    assert make_rounds([4, 4, 5, 5], worse).score.flat is not None  # 8 → 10 of 16
    assert make_rounds([5, 5, 4, 3], worse).score.flat is None  # 10 → 7 of 16 is not the same either
    # As many are taken, and the others are nearer to the answer.
    assert make_rounds([4, 4, 4, 4], ["zzzz", "zzzz", "a cab", "a cab"]).score.flat is None


def test_flat_needs_two_full_windows_and_two_rounds() -> None:
    assert make_rounds([5, 5, 5]).score.flat is None  # 24 answers
    one_round = Script()
    one_round.ask_many([True, False] * 8)
    one_round.finish_round()
    one_round.ask_many([True, False] * 8)
    assert one_round.score.flat is None
    one_round.finish_round()
    one_round.ask_many([True, False])
    assert one_round.score.flat is not None  # its last suggestion is two rounds newer than the sixteenth


def test_the_windows_of_flat_do_not_overlap() -> None:
    script = Script()
    for _ in range(7):
        script.ask_many([True, False] * 2)
        script.finish_round()
    assert script.score.flat is None  # 28 answers, seven rounds
    script.ask_many([True, False] * 2)
    assert script.score.flat is not None


def test_flat_is_not_said_where_it_is_enough() -> None:
    assert make_rounds([8, 8, 8, 8]).score.flat is None
    script = make_rounds([8, 7, 8, 7])
    assert script.score.is_enough
    assert script.score.flat is None


def test_two_rounds_with_a_high_loss_and_little_taken_are_unlearned() -> None:
    script = Script()
    script.ask_many([False] * 4)
    script.finish_round("limit")
    script.ask_many([False] * 4)
    script.finish_round("limit")
    assert not compute_score(script.events).unlearned  # only four suggestions since
    script.ask_many([False] * 4)
    assert compute_score(script.events).unlearned
    assert script.score.to_view()["unlearned"] is True
    script.ask_many([True])
    assert compute_score(script.events).unlearned, "one of nine may be chance"
    script.ask_many([True])
    assert not compute_score(script.events).unlearned, "a fifth is not"


def test_a_round_that_has_just_ended_does_not_hide_what_is_not_learned() -> None:
    script = Script()
    for _ in range(3):
        script.finish_round("limit")
        script.ask_many([False] * 7)
    assert script.score.unlearned
    script.finish_round("limit")
    assert compute_score(script.events).unlearned
    script.finish_round("low")
    assert not compute_score(script.events).unlearned


def test_a_low_loss_or_close_suggestions_are_not_unlearned() -> None:
    for reasons, wrong, expected in [
        (("limit", "flat"), "zzzz", True),
        (("limit", "low"), "zzzz", False),
        (("low", "limit"), "zzzz", False),
        (("limit", "limit"), "a cab", False),  # edit distance 0.2
    ]:
        script = Script()
        script.finish_round(reasons[0])
        script.ask_many([False] * 8, wrong)
        script.finish_round(reasons[1])
        assert script.score.unlearned is expected


def test_untuned_suggestions_do_not_make_a_round_unlearned() -> None:
    script = Script()
    script.finish_round("limit")
    script.finish_round("limit")
    script.round = 0
    script.ask_many([False] * 8)
    assert not script.score.unlearned


def test_the_edit_distance_comes_first_where_few_are_taken_and_all_are_close() -> None:
    for taken, wrong, expected in [(3, "a cab", True), (4, "a cab", False), (3, "zzzz", False)]:
        script = Script()
        script.ask_many([True] * taken + [False] * (16 - taken), wrong)
        assert script.score.is_edit_first is expected


def test_the_last_wrong_suggestions_are_of_a_tuned_model() -> None:
    script = Script()
    script.ask_many([False] * 2)
    script.finish_round()
    script.ask_many([False, True, False])
    assert [outcome.id for outcome in script.score.wrong] == ["s5", "s3"]


def test_blind_answers_are_compared_with_those_shown_in_the_same_time() -> None:
    script = Script()
    script.ask_many([False] * 6)  # before the first blind one: not compared
    script.ask("a cat", "a dog", blind=True)
    script.ask_many([True, True, True, False])
    script.ask("a cat", "a cat", blind=True)
    script.ask("a cat", "a cat", blind=True, pick="hardest")
    script.ask("a cat", "a cat", blind=True, alike="1.jpg")
    script.ask(None, "a cat", blind=True, round=None)
    blind = script.score.blind
    assert blind is not None
    assert blind.shown is not None
    assert (blind.shown.taken, blind.shown.count, blind.blind.taken, blind.blind.count) == (3, 4, 1, 2)
    (low, high), (blind_low, blind_high) = compute_wilson_by_hand(3, 4), compute_wilson_by_hand(1, 2)
    assert blind.low == pytest.approx(0.25 - math.sqrt((0.75 - low) ** 2 + (blind_high - 0.5) ** 2))
    assert blind.high == pytest.approx(0.25 + math.sqrt((high - 0.75) ** 2 + (0.5 - blind_low) ** 2))
    assert len(script.score.outcomes) == 10


def review(script: Script, image: str, text: str, reviewer: str = "Ann") -> str:
    id = script.suggest(None, image=image, pick="review", round=None)
    script.events.append(Reviewed(t=4.0, id=id, text=text, reviewer=reviewer, seconds=1.0))
    return id


def test_kappa_is_worked_out_by_hand() -> None:
    # Cohen's table: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no. Equal 0.7, by chance 0.5·0.6 + 0.5·0.4 = 0.5.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert compute_kappa(pairs) == pytest.approx(0.4)
    assert compute_kappa([("a", "a")] * 5) is None
    assert compute_kappa([]) is None
    assert compute_kappa([("a", "b"), ("b", "a")]) == pytest.approx(-1)


def test_a_review_compares_with_the_answers_that_stood() -> None:
    script = Script(labels=["cat", "dog"])
    for label in ("cat", "cat", "dog", "dog"):
        script.ask("cat", label)
    script.events.append(Mended(t=3.0, id="s2", text="dog"))
    review(script, "1.jpg", "cat")
    review(script, "2.jpg", "dog")  # the mended answer
    review(script, "3.jpg", "dog")
    undone = review(script, "4.jpg", "cat")
    script.events.append(Undone(t=5.0, id=undone))
    review(script, "4.jpg", "cat")
    review(script, "4.jpg", "cat")  # counts once, as it was the first time
    review(script, "4.jpg", "cat", reviewer="Bo")  # agrees with Ann
    ann, bo = script.score.agreements
    assert (ann.reviewer, ann.equal.taken, ann.equal.count) == ("Ann", 3, 4)
    # Before: 1 cat, 3 dogs; Ann: 2 cats, 2 dogs. Equal 3/4, by chance 2/16 + 6/16.
    assert ann.kappa == pytest.approx((0.75 - 0.5) / 0.5)
    assert (bo.reviewer, bo.equal.taken, bo.equal.count, bo.kappa) == ("Bo", 1, 1, None)
    assert len(script.score.outcomes) == 4


def test_a_skip_in_a_review_that_is_taken_back_changes_no_answer() -> None:
    script = Script()
    script.ask("a cat", "a cat")
    id = script.suggest(None, image="1.jpg", pick="review", round=None)
    script.events += [Skipped(t=4.0, id=id, reason="user"), Undone(t=5.0, id=id)]
    script.events.append(Reviewed(t=6.0, id=id, text="a dog", reviewer="Ann", seconds=1.0))
    [agreement] = script.score.agreements
    assert (agreement.equal.taken, agreement.equal.count) == (0, 1)


def test_captions_have_no_kappa() -> None:
    script = Script()
    for answer in ("a cat", "a dog"):
        script.ask("a cat", answer)
    review(script, "1.jpg", "a cat")
    review(script, "2.jpg", "a cow")
    (agreement,) = script.score.agreements
    assert agreement.equal.value == 0.5
    assert agreement.kappa is None


def test_an_answer_without_its_suggestion_is_an_error() -> None:
    script = Script()
    script.answer("s7", "a cat")
    with pytest.raises(LorgnetteError, match="s7"):
        compute_score(script.events)


def test_a_late_suggestion_does_not_count_for_an_earlier_answer() -> None:
    """The order in the journal is the proof that the model had not seen the answer."""
    script = Script()
    script.ask("a cat", "a cat")
    suggested, answered = script.events[1:]
    with pytest.raises(LorgnetteError, match="s1"):
        compute_score([script.events[0], answered, suggested])


def test_the_view_is_json() -> None:
    script = make_rounds([5, 5, 4, 5])
    script.ask("a cat", "a dog", blind=True)
    review(script, "1.jpg", "a cow")
    view = json.loads(json.dumps(script.score.to_view(), allow_nan=False))
    assert view["counted"] == 32
    assert view["curve"][-1][:2] == [32, 9 / 16]
    assert view["blind"]["blind"] | {"low": 0, "high": 0} == {"taken": 0, "of": 1, "share": 0, "low": 0, "high": 0}
    assert view["blind"]["shown"] is None
    assert view["reviews"][0]["equal"]["of"] == 1
    assert set(view["recent"]) == {"edit", "words_changed", "keys_saved", "seconds"}
