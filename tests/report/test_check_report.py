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
    format_histogram,
    list_facts,
    list_warnings,
)
from lorgnette.types import Example, Finding, FindingKind, Problem

ROW = Example("x", (), Path("a.csv"), 7)
REPORT = DataReport(400, 400, (), 80, 320, (10, 20), (640, 480), AnswerLengths(3, 5, 5.5, 9))
TOKENS = TokenStats(5, 500, 400, 50, 90, 100.0, 112, ((90, 100, 1), (100, 110, 4), (110, 120, 0)))


def found(**changed: Any) -> CheckReport:
    given = {
        "title": "a.csv", "report": REPORT, "findings": (), "parts": SplitSummary(396, 4, 4),
        "scripts": {"Latin": (399, ROW)}, "tokens": TOKENS, "compared": 80, **changed,
    }  # fmt: skip
    return CheckReport(**given)


def of_kind(kind: FindingKind, row: int = 3) -> Finding:
    return Finding(kind, Problem(Path("a.csv"), row, "what", "remedy"), (Path("p.jpg"),))


def test_every_kind_has_its_title() -> None:
    assert set(TITLES) == set(get_args(FindingKind))


@pytest.mark.parametrize("kind", get_args(FindingKind))
def test_only_what_training_refuses_stops(kind: FindingKind) -> None:
    assert found(findings=[of_kind(kind)]).is_blocking == (kind in ("unusable", "over-budget"))


def test_the_verdict() -> None:
    unusable, tiny = of_kind("unusable"), of_kind("tiny")
    assert found().verdict == "Nothing was found against its rows."
    assert found(findings=[tiny]).verdict == "Nothing keeps a training from starting; 1 finding is worth a look."
    assert found(findings=[tiny, unusable, tiny]).verdict == (
        "Training would not start: 1 of 400 rows cannot be used; 2 findings are worth a look."
    )
    too_few = SplitSummary(3, 0, 0, "too few")
    assert found(parts=too_few).verdict == "Training would not start: no row can be held out."
    assert found(parts=too_few, findings=[tiny]).verdict.endswith("held out; 1 finding is worth a look.")
    assert found(parts=too_few).is_blocking
    assert list(list_warnings(found(parts=too_few))) == []  # it is an error
    nothing = found(report=DataReport(0, 0, (), 0, 0, None, None, None))
    assert (nothing.verdict, nothing.is_blocking) == ("There are no rows.", True)


def test_the_hold_out_is_judged() -> None:
    assert found().advice == []
    assert found(parts=SplitSummary(3, 1, 1)).advice == []
    [one] = found(parts=SplitSummary(395, 5, 1)).advice
    assert SplitSummary(395, 5, 1).advice == [one]
    assert one.startswith("the hold-out is one picture with 5 answers")
    assert found(parts=SplitSummary(3, 0, 0, "too few")).advice == ["no row can be held out: too few"]
    assert found(parts=SplitSummary(3, 2, 0)).advice == []  # text alone


def test_warnings_are_told_up_to_a_number() -> None:
    findings = [of_kind("tiny", row) for row in range(MAX_LISTED + 3)] + [of_kind("leak"), of_kind("unusable")]
    told = list(list_warnings(found(findings=findings)))
    assert told[0] == "a.csv, row 3: what; remedy"
    assert len(told) == 1 + MAX_LISTED + 1
    assert told[-1] == "… tiny pictures: 3 more (--json or --out names all)"


def test_facts() -> None:
    said = dict(list_facts(found(scripts={"Latin": (399, ROW), "Han": (1, ROW)}, unchecked=["this", "that"])))
    assert said == {
        "rows": "400, 400 usable, 0 broken",
        "pictures": "80, used 400 times",
        "sizes": "10×20 to 640×480 pixels",
        "answers": "3 to 9 characters, 6 on average",
        "scripts": "Latin 399 (first in row 7), Han 1 (first in row 7)",
        "parts": "396 trained on, 4 held out, on 4 pictures",
        "looks": "80 pictures compared",
        "unchecked": "this; that",
        "tokens": "90 to 112 an example, 100 in the middle",
        "in all": "500 tokens, 80 % pictures, 10 % trained",
    }
    assert "on 1 picture" in dict(list_facts(found(parts=SplitSummary(3, 1, 1))))["parts"]
    one = DataReport(1, 1, (), 1, 0, (40, 40), (40, 40), AnswerLengths(3, 3, 3.0, 3))
    said = dict(list_facts(found(report=one, compared=1)))
    assert said["pictures"] == "1, used 1 time"
    assert said["sizes"] == "40×40 pixels"
    assert said["answers"] == "3 characters, 3 on average"
    assert said["looks"] == "1 picture compared"


def test_the_histogram_in_lines() -> None:
    assert list(format_histogram(TOKENS)) == ["  90–99  ████████ 1", "100–109  " + "█" * 32 + " 4", "110–119"]


def test_json() -> None:
    told = json.loads(json.dumps(found(findings=[of_kind("tiny"), of_kind("unusable")]).as_dict()))
    assert told["stops"] is True
    assert [each["kind"] for each in told["findings"]] == ["unusable", "tiny"]
    assert told["findings"][1] == {
        "kind": "tiny", "stops": False, "source": "a.csv", "row": 3, "what": "what", "remedy": "remedy",
        "pictures": ["p.jpg"],
    }  # fmt: skip
    assert told["tokens"]["bins"][1] == [100, 110, 4]
    assert told["scripts"]["Latin"] == {"answers": 399, "first": {"source": "a.csv", "row": 7}}
    assert (told["rows"], told["parts"]["held_out"], told["compared"]) == (400, 4, 80)
    assert found(tokens=None).as_dict()["tokens"] is None
