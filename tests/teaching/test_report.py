"""The report of a taught run: what it says, and how it looks in a browser."""

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.teaching.events import (
    Answered,
    Event,
    Finished,
    Opened,
    Reviewed,
    RoundDone,
    RoundFailed,
    Skipped,
    Suggested,
    UntunedShown,
)
from lorgnette.teaching.images import ImageList, read_images
from lorgnette.teaching.report import judge_teaching, list_next_steps, mark_changes, write_report
from lorgnette.teaching.score import compute_score

ANSWER = "A small red car to the left of a big tree."
WRONG = "A small green car to the left of a big tree."
LONG = "The image depicts a scene with two <b>objects</b> on a plain background, one of which is bright."
SECONDS, KEYS = 3.0, 4


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (60 + i, 40), (6 * i, 90, 10)).save(tmp_path / "photos" / "a" / f"{i}.png")
    return read_images(tmp_path / "photos", "COCO Yes:")


def open_run(labels: Sequence[str] = (), prompt: str = "COCO Yes:") -> list[Event]:
    return [
        Opened(t=0, folder="photos", model="M", prompt=prompt, seed=0, num_images=40, labels=[*labels], version="1")
    ]


def ask(events: list[Event], suggestion: str, answer: str = ANSWER, *, round: int = 0, blind: bool = False) -> None:
    number = sum(isinstance(event, Answered) for event in events)
    id = f"s{number}"
    events += [
        Suggested(
            t=1, id=id, image=f"a/{number}.png", sha="0", round=round, pick="shuffled", text=suggestion, blind=blind
        ),
        Answered(t=2, id=id, text=answer, seconds=SECONDS, keys=KEYS, counts=not blind),
    ]


def finish_round(events: list[Event], number: int, end_reason: str = "low") -> None:
    events.append(RoundDone(t=3, round=number, answers=8, steps=31, loss=0.1234, seconds=1.5, end_reason=end_reason))


def teach(taken: Sequence[bool], *, first: str = LONG, wrong: str = WRONG, end_reason: str = "low") -> list[Event]:
    """Four untuned suggestions that are wrong, then these."""
    events = open_run()
    for _ in range(4):
        ask(events, first)
    finish_round(events, 1, end_reason)
    finish_round(events, 2, end_reason)
    for flag in taken:
        ask(events, ANSWER if flag else wrong, round=2)
    return events


def read_text(path: Path) -> str:
    """What the page says, without marks and styles."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"</?(p|dt|dd|td|th|li|h\d|span|small)\b[^>]*>", " ", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\u00a0", " ").split())


@pytest.fixture
def write(tmp_path: Path, images: ImageList) -> Callable[[Sequence[Event]], Path]:
    def write_page(events: Sequence[Event]) -> Path:
        run = tmp_path / "runs" / "teach-photos"
        (run / "adapter").mkdir(parents=True, exist_ok=True)
        (run / "captions.csv").touch()
        write_report(run / "report.html", events, images, run=run, settings={"lora": {"rank": 16}})
        return run / "report.html"

    return write_page


def test_the_page_says_what_was_taught_and_how_it_went(write: Callable[[Sequence[Event]], Path]) -> None:
    events = teach([True, False] * 10)
    events += [
        Suggested(t=4, id="x", image="a/30.png", sha="0", round=2, pick="shuffled", text="?"),
        Skipped(t=4, id="x", reason="user"),
        RoundFailed(t=5, round=3, message="loss is <not> finite", hint="try", kind="loss"),
        Finished(t=6, answers=24, suggestions=15),
    ]
    path = write(events)
    text = read_text(path)
    for part in (
        "teach-photos",
        "It learned most of it.",
        "8 of the last 16 suggestions were taken as they stand; before tuning 0 of 4.",
        "With so few answers the share may be 31 to 69 % (90 % interval).",
        "People tend to take what is offered, so it may be too high.",
        "Prompt COCO Yes:",
        "Answers 24, of which 24 judged a suggestion",
        "Captioned without a person 15",
        "Skipped 1",
        "Taken as they stand equal to the answer, but for spaces around it 0 of 4 (0 to 40 %) 8 of 16 (31 to 69 %)",
        "1 8 31 0.123 1.5 loss is low –",
        "2 8 31 0.123 1.5 loss is low 10 of 20",
        "Round 3 did not finish: loss is <not> finite",
        "captions.csv the answers that a person confirmed",
        "lora.rank 16",
        "--blind 10",
    ):
        assert part in text, part
    assert "suggestions.csv" not in text  # it is not there
    page = path.read_text(encoding="utf-8")
    assert "<b>objects" not in page
    assert page.count('class="band') == 1
    assert "tuned from here" in page


def test_numbers_of_the_table_are_those_of_the_score(write: Callable[[Sequence[Event]], Path]) -> None:
    events = teach([True, False] * 10)
    recent = compute_score(events).recent
    assert recent is not None
    text = read_text(write(events))
    # 8 of 16 suggestions have one wrong word of eleven, green for red: 3 edits of 44 characters. 4 keys for 42.
    assert recent.words_changed == pytest.approx(8 / (16 * 11))
    assert re.search(r"letter case \d+ % 5 %", text)
    assert recent.edit == pytest.approx(0.5 * 3 / 44)
    assert f"0 is equal {compute_score(events[:9]).edits[0]:.2f} 0.03" in text
    assert "were pressed 90 % 90 %" in text
    assert "left out 3 s 3 s" in text


def test_words_that_changed_are_marked(write: Callable[[Sequence[Event]], Path]) -> None:
    page = write(teach([False] * 2)).read_text(encoding="utf-8")
    assert "A small <del>green</del> car to the left of a big tree." in page
    assert "A small <ins>red</ins> car to the left of a big tree." in page


def test_changes_are_found_word_by_word_also_in_chinese() -> None:
    assert mark_changes("一只红色的猫", "一只黑色的猫") == (
        [("一只", False), ("红", True), ("色的猫", False)],
        [("一只", False), ("黑", True), ("色的猫", False)],
    )
    before, after = mark_changes("a red  car", "a big red  car.")
    assert before == [("a red  ", False), ("car", True)]
    assert after == [("a", False), (" big", True), (" red  ", False), ("car.", True)]
    assert mark_changes("one two three", "quite another text") == (
        [("one two three", False)],
        [("quite another text", False)],
    )
    assert mark_changes("", "a cat") == ([("", False)], [("a cat", False)])


@pytest.mark.parametrize(
    ("events", "kind", "headline"),
    [
        (open_run(), "unsure", "Cannot say whether it learned."),
        (teach([True] * 11), "unsure", "Cannot say yet: 15 judged suggestions are too few."),
        (teach([True] * 16), "worked", "It writes what was wanted."),
        (teach([True] * 8 + [False] * 8), "worked", "It learned most of it."),
        (teach([True] * 7 + [False] * 9), "helped", "It learned some of it."),
        (teach([False] * 16), "helped", "It comes close."),
        (teach([False] * 16, wrong=LONG), "unsure", "Cannot say whether teaching helped."),
        (teach([True] * 12 + [False] * 4, first=WRONG, wrong=LONG), "worked", "It learned most of it."),
        (teach([False] * 16, wrong=LONG, end_reason="limit"), "unchanged", "It does not learn this yet."),
    ],
)
def test_the_verdict(events: list[Event], kind: str, headline: str) -> None:
    verdict = judge_teaching(compute_score(events))
    assert (verdict.kind, verdict.headline) == (kind, headline)


def test_enough_of_a_longer_window_is_said_with_its_numbers() -> None:
    events = teach([True] * 14 + [False] + [True] * 8 + [False] + [True] * 8)
    verdict = judge_teaching(compute_score(events))
    assert "30 of the last 32 suggestions were taken as they stand" in verdict.evidence


def add_blind(events: list[Event], equal: int, count: int) -> None:
    for i in range(count):
        ask(events, ANSWER if i < equal else WRONG, round=2, blind=True)


def test_a_blind_comparison_says_whether_the_share_is_too_high(write: Callable[[Sequence[Event]], Path]) -> None:
    events = teach([])
    add_blind(events, 1, 8)
    for _ in range(14):
        ask(events, ANSWER, round=2)
    text = read_text(write(events))
    assert "Written without seeing the suggestion: 1 of 8 (" in text
    assert "14 of 14 (84 to 100 %) were taken. The difference is 88 points (90 % interval 55 to 97): more than" in text
    assert "It is too high: who does not see the suggestion writes it less often." in text
    assert "--blind 10" not in text


def test_a_difference_that_chance_explains_is_not_called_too_high(write: Callable[[Sequence[Event]], Path]) -> None:
    events = teach([])
    add_blind(events, 3, 4)
    for _ in range(14):
        ask(events, ANSWER, round=2)
    text = read_text(write(events))
    assert "chance could explain it." in text
    assert "Of 4 answers written without seeing the suggestion, 3 equal it." in text
    assert "too high" not in text


def test_looks_at_the_untuned_model_are_told(write: Callable[[Sequence[Event]], Path]) -> None:
    events = teach([True] * 16)
    assert "untuned model says" not in read_text(write(events))
    place = next(i for i, event in enumerate(events) if isinstance(event, Answered) and event.id == "s9")
    events.insert(place, UntunedShown(t=1.5, id="s9", text=LONG))
    assert (
        "Before 1 of the 20 counted answers the person also looked at what the untuned model says. Such an answer "
        "counts like the others." in read_text(write(events))
    )


def test_labels_have_a_table_and_a_review_has_kappa(write: Callable[[Sequence[Event]], Path]) -> None:
    events = open_run(labels=["cat", "dog"], prompt="Which animal?")
    for i in range(20):
        ask(events, "cat" if i % 3 else "dog", "dog" if i % 2 else "cat", round=1)
    for i in range(4):
        id = f"r{i}"
        events += [
            Suggested(t=4, id=id, image=f"a/{i}.png", sha="0", round=None, pick="review", text="cat"),
            Reviewed(t=5, id=id, text="cat" if i < 3 else "dog", reviewer="Ann <1>", seconds=1),
        ]
    path = write(events)
    text = read_text(path)
    assert "Labels cat, dog" in text
    assert "Answers, suggested" in text
    # Before: cat dog cat dog; after: cat cat cat dog. Equal 3 of 4, by chance 1/2.
    assert "Ann <1> looked at answers again and left 3 of 4 (36 to 94 %) as they were. Cohen's kappa is 0.50" in text
    assert "<1>" not in path.read_text(encoding="utf-8")


def test_an_image_that_is_gone_and_an_empty_journal_leave_a_page(
    write: Callable[[Sequence[Event]], Path], images: ImageList
) -> None:
    events = teach([False])
    images.paths[4].unlink()
    page = write(events).read_text(encoding="utf-8")
    assert "a/4.png" in page
    assert "file not found" in page
    text = read_text(write([]))
    assert "Cannot say whether it learned. 0 answers so far" in text
    assert "Curve" not in text


def test_next_steps_need_an_adapter_for_what_asks_it(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    assert [command.split()[1] for _, command in list_next_steps(run)] == ["teach", "teach"]
    (run / "adapter").mkdir(parents=True)
    commands = [command for _, command in list_next_steps(run)]
    assert [command.split()[1] for command in commands] == ["predict", "serve", "verify", "teach", "teach"]
    assert all(f"'{run}'" in command for command in commands)


def test_the_page_is_fit_to_look_at(
    write: Callable[[Sequence[Event]], Path], is_fit_to_look_at: Callable[[Path], None]
) -> None:
    events = teach([True, False] * 10)
    add_blind(events, 1, 4)
    events.append(RoundFailed(t=5, round=3, message="no memory", hint="", kind="memory"))
    is_fit_to_look_at(write(events))
