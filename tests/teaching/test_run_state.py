"""What events amount to: answers in order, what is shown, what can be taken back, when a round is due."""

from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.teaching import events as e
from lorgnette.teaching.run_state import GoodRound, RunState, compute_digest


class Story:
    """A state and the short way to tell it."""

    def __init__(self, every: int = 8) -> None:
        self.state = RunState(every=every)
        self.events: list[Any] = []

    def tell(self, *events: Any) -> None:
        for event in events:
            self.events.append(event)
            self.state.apply(event)

    def answer(self, number: int, text: str = "right", suggestion: str | None = "right") -> None:
        id = f"s{number}"
        if id not in self.state.suggested:
            self.tell(e.Suggested(t=0, id=id, image=f"{number}.png", sha="", round=0, pick="shuffled", text=suggestion))
        self.tell(e.Answered(t=0, id=id, text=text, seconds=1, keys=1, counts=True))

    def train(self, number: int, *, is_good: bool = True) -> None:
        answers = len(self.state.answers)
        self.tell(e.RoundBegun(t=0, round=number, answers=answers, digest=f"digest {number}"))
        if is_good:
            done = e.RoundDone(t=0, round=number, answers=answers, steps=1, loss=0.1, seconds=1, end_reason="low")
            self.tell(done)
        else:
            self.tell(e.RoundFailed(t=0, round=number, message="", hint="", kind="other"))


def list_due(every: int, texts: list[str]) -> list[int]:
    """After how many answers a round is due, if each is done at once."""
    story, due = Story(every), []
    for number, text in enumerate(texts, start=1):
        story.answer(number, text)
        if story.state.is_round_due:
            due.append(number)
            story.train(len(due))
    return due


@pytest.mark.parametrize(
    ("every", "due"), [(8, [4, 8, 16, 24, 32]), (1, [4, *range(8, 41)]), (16, [4, 8, 24, 40]), (100, [4, 8])]
)
def test_when_rounds_are_due(every: int, due: list[int]) -> None:
    assert [number for number in list_due(every, ["wrong"] * 40) if number <= due[-1]] == due


def test_a_round_is_needless_if_all_answers_were_right() -> None:
    assert list_due(8, ["right"] * 40) == []
    assert list_due(8, ["wrong"] + ["right"] * 39) == [4]
    assert list_due(8, ["right"] * 29 + ["wrong"] + ["right"] * 10) == [32]
    story = Story()
    for number in range(1, 17):
        story.answer(number)
    assert story.state.needless_rounds == [4, 4, 8]


def test_a_late_round_does_not_move_the_next() -> None:
    """A round that began at 6 answers: the next is due after 8."""
    story = Story()
    for number in range(1, 7):
        story.answer(number, "wrong")
    story.train(1)
    due = []
    for number in range(7, 30):
        story.answer(number, "wrong")
        if story.state.is_round_due:
            due.append(number)
            if number == 8:
                story.train(2)
    assert due[:2] == [8, 16]


def test_undo_and_mend_change_what_is_new() -> None:
    story = Story()
    for number in range(1, 4):
        story.answer(number, "wrong")
    story.tell(e.Undone(t=0, id="s3"))
    story.answer(4, "wrong")
    assert not story.state.is_round_due
    story.answer(3, "wrong")
    assert story.state.is_round_due
    story.train(1)
    for number in range(1, 5):  # four changes of what was trained on
        assert not story.state.is_round_due
        story.tell(e.Mended(t=0, id=f"s{number}", text="other"))
    assert story.state.is_round_due
    story.tell(e.Mended(t=0, id="s2", text="wrong"))  # as it was
    assert not story.state.is_round_due
    assert story.state.list_answers() == [
        ("1.png", "other"),
        ("2.png", "wrong"),
        ("3.png", "other"),
        ("4.png", "other"),
    ]


def test_answers_keep_the_place_of_the_first() -> None:
    story = Story()
    for number in (2, 1, 3):
        story.answer(number)
    story.tell(e.Undone(t=0, id="s2"))
    assert [name for name, _ in story.state.list_answers()] == ["1.png", "3.png"]
    assert (story.state.shown, list(story.state.decisions)) == (["s2"], ["s1", "s3"])
    assert story.state.had_answer("2.png")
    story.answer(2, "again")
    assert story.state.list_answers() == [("2.png", "again"), ("1.png", "right"), ("3.png", "right")]
    assert list(story.state.decisions) == ["s1", "s3", "s2"]


def test_a_failed_round() -> None:
    story = Story()
    for number in range(1, 5):
        story.answer(number, "wrong")
    story.train(1)
    for number in range(5, 9):
        story.answer(number, "wrong")
    story.train(2, is_good=False)
    assert story.state.good_round == GoodRound(1, 4, "digest 1")
    assert (story.state.num_rounds, story.state.is_round_due) == (2, False)
    for number in range(9, 17):
        story.answer(number)
    assert story.state.is_round_due  # all new answers are right, but the corrections before were not learned
    story.train(3)
    assert story.state.good_round == GoodRound(3, 16, "digest 3")


def test_a_round_that_a_kill_cut_off_is_due_again() -> None:
    story = Story()
    for number in range(1, 5):
        story.answer(number, "wrong")
    story.tell(e.RoundBegun(t=0, round=1, answers=4, digest="d"))
    assert not story.state.is_round_due
    opened = e.Opened(t=0, folder="", model="", prompt="", seed=0, num_images=9, labels=[], version="")
    story.tell(opened, opened)
    assert (story.state.is_round_due, story.state.has_cut_off_round) == (True, True)
    story.train(2)
    assert (story.state.is_round_due, story.state.has_cut_off_round) == (False, False)


def test_reviews() -> None:
    story = Story()
    story.answer(1, "before")
    review = e.Suggested(t=0, id="s2", image="1.png", sha="", round=None, pick="review", text="before")
    story.tell(review, e.Reviewed(t=0, id="s2", text="after", reviewer="Zoë", seconds=1))
    assert story.state.answers == {"1.png": "after"}
    assert story.state.reviewed == {"Zoë": {"1.png"}}
    story.tell(e.Undone(t=0, id="s2"))
    assert (story.state.answers, story.state.reviewed) == ({"1.png": "before"}, {"Zoë": set()})
    story.tell(e.Skipped(t=0, id="s2", reason="user"), e.Undone(t=0, id="s2"))
    assert story.state.answers == {"1.png": "before"}


def test_reading_again_gives_the_same_state() -> None:
    story = Story()
    for number in range(1, 20):
        story.answer(number, "wrong" if number % 5 else "right")
        if story.state.is_round_due:
            story.train(number, is_good=number < 16)
    story.tell(e.Undone(t=0, id="s7"), e.Mended(t=0, id="s3", text="x"), e.Finished(t=0, answers=1, suggestions=2))
    assert vars(RunState(story.events)) == vars(story.state)


@pytest.mark.parametrize(
    "event",
    [
        e.Answered(t=0, id="s9", text="x", seconds=1, keys=1, counts=True),
        e.Mended(t=0, id="s9", text="x"),
        e.Skipped(t=0, id="s9", reason="user"),
        e.Undone(t=0, id="s9"),
    ],
)
def test_an_event_about_nothing_is_an_error(event: e.Event) -> None:
    with pytest.raises(LorgnetteError, match="s9, which was not suggested"):
        RunState([event])


def test_nothing_is_taken_back_twice() -> None:
    story = Story()
    story.answer(1)
    story.tell(e.Undone(t=0, id="s1"))
    with pytest.raises(LorgnetteError, match="s1 back, which was not done"):
        story.tell(e.Undone(t=0, id="s1"))


def test_a_digest_is_of_names_texts_and_order() -> None:
    digests = {
        compute_digest(answers)
        for answers in ([], [("a", "b")], [("ab", "")], [("a", "b"), ("c", "d")], [("c", "d"), ("a", "b")])
    }
    assert len(digests) == 5
    assert compute_digest([("é", "\udce9")]) == compute_digest([("é", "\udce9")])
