"""Which image is asked about, and what its event says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from taught_run import open_images

from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.current_image import CurrentImage
from lorgnette.teaching.events import Answered, Skipped, Suggested, Undone
from lorgnette.teaching.journal import Journal
from lorgnette.teaching.run_record import RunRecord

Make = Callable[..., tuple[RunRecord, CurrentImage]]
OPTIONS: dict[str, Any] = {"seed": 3, "use_hardest": False, "blind": 0, "reviewer": None}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(broken, **options): a new reading of the same run of 8 images."""
    (tmp_path / "run").mkdir()
    journals = []

    def build(broken: dict[int, str] | None = None, **options: Any) -> tuple[RunRecord, CurrentImage]:
        journals.append(Journal.open(tmp_path / "run" / "journal.jsonl"))
        images = open_images(tmp_path / "images", 8)
        images.alike = {5: 1, 6: 1}
        record = RunRecord(journals[-1], images, RunDir(tmp_path / "run"), 8)
        return record, CurrentImage(record, broken or {}, **{**OPTIONS, **options})

    yield build
    for journal in journals:
        journal.close()


def write(record: RunRecord, current: CurrentImage, *events: Any) -> None:
    for event in record.write(events):
        current.apply(event)


def show_next(record: RunRecord, current: CurrentImage) -> Suggested:
    [event] = current.build_next(1.0)
    write(record, current, event)
    return event


def answer(record: RunRecord, current: CurrentImage, id: str, text: str = "x") -> None:
    write(record, current, Answered(t=1.0, id=id, text=text, seconds=1.0, keys=1, counts=True))


def test_one_image_after_the_other(make: Make) -> None:
    record, current = make()
    assert current.id is None
    seen = []
    for number in range(1, 9):
        expected = current.find_next_image()
        event = show_next(record, current)
        assert (event.id, record.find_number(event.id)) == (f"s{number}", expected)
        assert event.sha == record.images.hash_image(expected or 0)
        assert current.id == event.id
        assert current.build_next(1.0) == []  # one is shown
        seen.append(event.image)
        answer(record, current, event.id)
    assert sorted(seen) == sorted(record.images.names)
    assert current.build_next(1.0) == []
    assert (current.id, current.find_next_image()) == (None, None)


def test_the_next_is_built_with_the_answer(make: Make) -> None:
    record, current = make()
    first = show_next(record, current)
    [second] = current.build_next(1.0, done=first.id, text="x")
    assert (second.id, second.image != first.image) == ("s2", True)


def test_an_image_taken_back_comes_before_the_one_that_was_shown(make: Make) -> None:
    record, current = make()
    first = show_next(record, current)
    answer(record, current, first.id)
    second = show_next(record, current)
    write(record, current, Undone(t=1.0, id=first.id))
    assert (current.id, current.find_next_image()) == (first.id, record.find_number(second.id))
    assert current.build_next(1.0, done=first.id) == []
    answer(record, current, first.id)
    assert current.id == second.id
    _, again = make()
    assert again.id == second.id


def test_a_look_alike_has_the_answer_of_the_first(make: Make) -> None:
    record, current = make(blind=1)
    alike = []
    for _ in range(8):
        event = show_next(record, current)
        answer(record, current, event.id, f"of {event.image}")
        if event.image in ("image-1.png", "image-5.png", "image-6.png"):
            alike.append(event)
    first, *others = alike
    assert (first.alike, first.blind) == (None, True)
    for event in others:
        assert (event.alike, event.text, event.round, event.blind) == (first.image, f"of {first.image}", None, False)


def test_a_look_alike_of_the_answer_that_is_given_now(make: Make) -> None:
    record, current = make()
    record.images.alike = {number: 0 for number in range(1, 8)}
    first = show_next(record, current)
    [second] = current.build_next(1.0, done=first.id, text="now")
    assert (second.alike, second.text) == (first.image, "now")
    [other] = current.build_next(1.0, done=first.id)  # skipped
    assert other.alike is None


def test_broken_images_are_told(make: Make) -> None:
    record, current = make({number: "cut off" for number in range(8)}, blind=1)
    event = show_next(record, current)
    assert (current.find_problem(event), event.blind, event.text) == ("cut off", False, None)


def test_every_so_manyth_image_is_blind(make: Make) -> None:
    record, current = make(blind=3)
    blind = []
    for _ in range(8):
        event = show_next(record, current)
        blind.append(event.blind)
        write(record, current, Skipped(t=1.0, id=event.id, reason="user"))
    assert blind == [False, False, True, False, False, True, False, False]


def test_a_review_shows_what_is_answered_once(make: Make) -> None:
    record, current = make()
    for _ in range(4):
        answer(record, current, show_next(record, current).id)
    waiting = show_next(record, current)
    record, review = make({0: "cut off"}, reviewer="Zoë")
    assert (review.num_left, review.id) == (4, None)
    seen = []
    for left in (4, 3, 2, 1):
        assert review.num_left == left
        event = show_next(record, review)
        assert (event.pick, event.text, review.find_problem(event)) == ("review", "x", "")
        assert event.id not in seen
        seen.append(event.image)
        write(record, review, Skipped(t=1.0, id=event.id, reason="user"))
    assert set(seen) == set(record.state.answers)
    assert review.build_next(1.0) == []
    # Other people see another order, and the run itself goes on where it was.
    orders = []
    for name in ("Zoë", "Ann", "Bob", "Cid"):
        _, other = make(reviewer=name)
        orders.append(other.find_next_image())
    assert len(set(orders)) > 1
    assert make()[1].id == waiting.id
