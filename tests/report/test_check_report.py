import json
from pathlib import Path
from typing import Any, get_args

import pytest

from lorgnette.data import DataReport
from lorgnette.data.checks.data_report import AnswerLengths
from lorgnette.processing.token_stats import TokenStats
from lorgnette.report.check_report import (
    MAX_LISTED,
    TITLES,
    CheckReport,
    SplitSummary,
    explain_split,
    format_histogram,
    list_errors,
    list_facts,
    list_warnings,
)
from lorgnette.types import Example, Finding, FindingKind, Problem, Turn

ROW = Example("x", (), Path("a.csv"), 7)
REPORT = DataReport(400, 400, (), 80, 320, (10, 20), (640, 480), AnswerLengths(3, 5, 5.5, 9))
TOKENS = TokenStats(5, 500, 400, 50, 90, 100.0, 112, ((90, 100, 1), (100, 110, 4), (110, 120, 0)))


def make_report(**changed: Any) -> CheckReport:
    given = {
        "title": "a.csv", "data_report": REPORT, "findings": (), "split": SplitSummary(396, 4, 4),
        "scripts": {"Latin": (399, ROW)}, "token_stats": TOKENS, "num_compared": 80, **changed,
    }  # fmt: skip
    return CheckReport(**given)


def make_finding(kind: FindingKind, row: int = 3) -> Finding:
    return Finding(kind, Problem(Path("a.csv"), row, "message", "hint"), (Path("p.jpg"),))


NO_SPLIT = SplitSummary(3, 0, 0, "too few")


def test_every_kind_has_a_title() -> None:
    assert set(TITLES) == set(get_args(FindingKind))


def make_answers(*answers: str) -> list[Example]:
    return [Example(str(i), (Turn("assistant", (text,)),), Path("a.csv"), i) for i, text in enumerate(answers)]


def test_labels_that_no_held_out_row_has_are_named() -> None:
    """Rows that are sorted by label are held out from the end."""
    train, labels = make_answers(*["cat"] * 4, *["dog"] * 4, "fish"), ("cat", "dog", "fish")
    split = SplitSummary.from_examples(train, make_answers("fish", "Dog."))
    assert (split.labels, split.unseen_labels) == (labels, ("cat",))
    assert split.advice == [
        "1 of 3 labels are not among the held-out rows ('cat'), so no score is about them; hold out more, or mix the "
        "rows if they are sorted by label"
    ]
    assert dict(list_facts(make_report(split=split)))["labels"] == "3: 'cat', 'dog', 'fish'"
    assert SplitSummary.from_examples(train, make_answers("fish", "dog", "cat")).advice == []
    assert SplitSummary.from_examples(train, []).unseen_labels == ()
    [advice] = SplitSummary.from_examples(train, make_answers("fish", "fish")).advice
    assert "all 2 held-out answers are the same text" in advice
    texts = SplitSummary.from_examples(make_answers("a red car", "two dogs", "a cat"), make_answers("a boat"))
    assert (texts.labels, texts.advice) == ((), [])


@pytest.mark.parametrize("kind", get_args(FindingKind))
def test_blocking_kinds(kind: FindingKind) -> None:
    assert make_report(findings=[make_finding(kind)]).is_blocking == (kind in ("unusable", "over-budget"))


def test_summary() -> None:
    unusable, tiny = make_finding("unusable"), make_finding("tiny")
    assert make_report().summary == "Ready to train: no problems found in 400 rows."
    assert make_report(findings=[tiny]).summary == "Ready to train: 400 rows can be used; 1 warning."
    assert make_report(findings=[tiny, unusable, tiny]).summary == (
        "Training would not start: 1 of 400 rows cannot be used; 2 warnings."
    )
    assert make_report(split=NO_SPLIT).summary == "Training would not start: no rows can be held out."
    assert make_report(split=NO_SPLIT, findings=[tiny]).summary.endswith("held out; 1 warning.")
    assert make_report(split=NO_SPLIT).is_blocking
    empty = make_report(data_report=DataReport(0, 0, (), 0, 0, None, None, None))
    assert (empty.summary, empty.is_blocking) == ("Training would not start: the data has no rows.", True)


def test_summary_names_what_is_in_doubt() -> None:
    """A warning about the split counts as one, and a check that did not run is named."""
    assert make_report(split=SplitSummary(395, 5, 1)).summary == "Ready to train: 400 rows can be used; 1 warning."
    skipped = ["tokens: Qwen/Some is not on this machine", "look-alikes: switched off"]
    assert make_report(skipped_checks=skipped).summary == (
        "Ready to train: 400 rows can be used; not checked: tokens, look-alikes."
    )


def test_too_few_steps_are_a_warning() -> None:
    """Not where training does not start anyway."""
    few = make_report(steps="4: 2 epochs", step_advice="only 4 steps")
    assert few.summary == "Ready to train: 400 rows can be used; 1 warning."
    assert list(list_warnings(few)) == few.as_dict()["advice"] == ["only 4 steps"]
    assert dict(list_facts(few))["steps"] == few.as_dict()["steps"] == "4: 2 epochs"
    assert make_report(step_advice="only 4 steps", findings=[make_finding("unusable")]).advice == []


def test_rows_that_training_leaves_out_do_not_stop_it() -> None:
    unusable = make_finding("unusable")
    left_out = make_report(findings=[unusable], skips_bad_rows=True)
    assert (left_out.summary, left_out.is_blocking) == ("Ready to train: 1 of 400 rows is broken and left out.", False)
    several = make_report(findings=[unusable, make_finding("over-budget", 4)], skips_bad_rows=True, num_trainable=394)
    assert several.summary == "Ready to train: 2 of 400 rows are broken and left out."
    none_left = make_report(findings=[unusable], skips_bad_rows=True, num_trainable=0)
    assert none_left.is_blocking
    assert none_left.summary.startswith("Training would not start: 1 of 400 rows cannot be used")
    no_split = make_report(findings=[unusable], skips_bad_rows=True, split=NO_SPLIT)
    assert no_split.summary == "Training would not start: no rows can be held out."


def test_split_in_words() -> None:
    assert explain_split(SplitSummary(380, 20, 20)).startswith("380 rows for training, 20 held out. The model never")
    assert "With 4, one answer is 25 % of a score" in explain_split(SplitSummary(396, 4, 4))
    assert "With" not in explain_split(SplitSummary(380, 20, 20))
    assert explain_split(SplitSummary(4, 0, 0)).startswith("No rows are held out")
    assert explain_split(NO_SPLIT) == explain_split(SplitSummary(0, 0, 0)) == ""


def test_advice_about_the_split() -> None:
    assert SplitSummary(396, 4, 4).advice == []
    assert SplitSummary(3, 1, 1).advice == []
    assert SplitSummary(3, 2, 0).advice == []  # text only
    [advice] = SplitSummary(395, 5, 1).advice
    assert advice.startswith("all 5 held-out rows have the same image")
    assert list(list_warnings(make_report(split=SplitSummary(395, 5, 1)))) == [advice]
    assert NO_SPLIT.advice == list(list_errors(make_report(split=NO_SPLIT))) == ["no rows can be held out: too few"]
    assert list(list_warnings(make_report(split=NO_SPLIT))) == []  # it is an error


def test_warnings_are_limited() -> None:
    tiny = [
        Finding("tiny", Problem(Path("a.csv"), row, f"{chr(97 + row)}.jpg has only 2×2 pixels", "hint"))
        for row in range(MAX_LISTED + 3)
    ]
    lines = list(list_warnings(make_report(findings=[*tiny, make_finding("leak"), make_finding("unusable")])))
    assert lines[0] == "a.csv, row 3: message; hint"
    assert len(lines) == 1 + MAX_LISTED + 1
    assert lines[-1] == "… and 3 more: Tiny images (--json or --out lists all)"


@pytest.mark.parametrize(("kind", "list_lines"), [("unusable", list_errors), ("stray-marker", list_warnings)])
def test_equal_findings_are_one_line(kind: FindingKind, list_lines: Any) -> None:
    report = make_report(findings=[make_finding(kind, row) for row in range(2, 32)])
    assert list(list_lines(report)) == ["30 rows: message; hint (a.csv, rows 2–31)"]


def build_rows(*answers: str) -> list[Example]:
    turns = [(Turn("user", ("q",)), Turn("assistant", (answer,))) for answer in answers]
    return [Example("x", own, Path("a.csv"), row) for row, own in enumerate(turns)]


def test_answers_that_are_nearly_all_the_same_are_named() -> None:
    others = build_rows(*map(str, range(9)))
    train = build_rows(*["no"] * 18, "yes", "perhaps")
    [advice] = SplitSummary.from_examples(train, []).advice
    assert advice.startswith("18 of 20 answers are the same text ('no')")
    assert "without looking" in advice
    assert SplitSummary.from_examples([*train, *others[:1]], []).advice == []
    assert SplitSummary.from_examples(build_rows(*["no"] * 9), []).advice == [], "too few to tell"
    [advice] = SplitSummary.from_examples(others, build_rows("no", "no", "no")).advice
    assert advice.startswith("all 3 held-out answers are the same text ('no')")
    assert "the scores do not tell" in advice
    for held_out in (["no"], ["no", "yes"], ["", ""]):
        assert SplitSummary.from_examples(others, build_rows(*held_out)).advice == []


def test_facts() -> None:
    scripts = {"Latin": (399, ROW), "Han": (1, ROW)}
    assert dict(list_facts(make_report(scripts=scripts, skipped_checks=["this", "that"]))) == {
        "rows": "400, 400 usable, 0 broken",
        "images": "80, used 400 times",
        "sizes": "10×20 to 640×480 pixels",
        "answers": "3 to 9 characters, mean 6",
        "text": "writing system: Latin (399, first in row 7), Han (1, first in row 7)",
        "split": "396 for training, 4 held out with 4 images",
        "compared": "80 images for look-alikes",
        "skipped": "this; that",
        "tokens": "90 to 112 per example, median 100",
        "total": "500 tokens: 80% of images, 10% with loss",
    }
    assert "with 1 image" in dict(list_facts(make_report(split=SplitSummary(3, 1, 1))))["split"]
    rows = DataReport(1, 1, (), 1, 0, (40, 40), (40, 40), AnswerLengths(3, 3, 3.0, 3))
    facts = dict(list_facts(make_report(data_report=rows, num_compared=1)))
    assert facts["images"] == "1, used 1 time"
    assert facts["sizes"] == "40×40 pixels"
    assert facts["answers"] == "3 characters, mean 3"
    assert facts["text"] == "writing system: Latin (399)"
    assert facts["compared"] == "1 image for look-alikes"


def test_histogram() -> None:
    assert list(format_histogram(TOKENS)) == ["  90–99  ████████ 1", "100–109  " + "█" * 32 + " 4", "110–119"]


def test_json() -> None:
    report = make_report(findings=[make_finding("tiny"), make_finding("unusable")])
    result = json.loads(json.dumps(report.as_dict()))
    assert result["is_blocking"] is True
    assert [finding["kind"] for finding in result["findings"]] == ["unusable", "tiny"]
    assert result["findings"][1] == {
        "kind": "tiny", "is_blocking": False, "source": "a.csv", "row": 3, "message": "message", "hint": "hint",
        "where": "", "sheet_row": 0, "images": ["p.jpg"],
    }  # fmt: skip
    assert result["token_stats"]["histogram"][1] == [100, 110, 4]
    assert result["scripts"]["Latin"] == {"answers": 399, "first": {"source": "a.csv", "row": 7}}
    assert (result["rows"], result["split"]["num_held_out"], result["num_compared"]) == (400, 4, 80)
    assert make_report(token_stats=None).as_dict()["token_stats"] is None


@pytest.mark.parametrize(
    ("num_train", "num_held_out", "advice"),
    [
        (5, 1, ["only 1 row is held out of 6: too few to show what the model does with other images; add rows, or name "
                "some that are only for the test (data.test=FILE)"]),
        (3, 0, ["none of 3 rows is held out: too few to show what the model does with other images; add rows, or name "
                "some that are only for the test (data.test=FILE)"]),
        (6, 4, []),
        (0, 0, []),
    ],
)  # fmt: skip
def test_what_auto_cannot_hold_out_is_said(num_train: int, num_held_out: int, advice: list[str]) -> None:
    assert SplitSummary(num_train, num_held_out, num_held_out, is_auto=True).advice == advice
    assert SplitSummary(num_train, num_held_out, num_held_out).advice == [], "the user chose it"


@pytest.mark.parametrize(
    ("num_train", "advice"), [(98, "hold out more (data.holdout=50)"), (8, "(data.holdout=5)"), (2, "add images")]
)
def test_no_more_than_half_of_the_rows_are_to_be_held_out(num_train: int, advice: str) -> None:
    [line] = SplitSummary(num_train, 2, 1).advice
    assert advice in line
    assert ("hold out more" in explain_split(SplitSummary(num_train, 2, 2))) is (num_train > 2)
