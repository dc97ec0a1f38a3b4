from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from lorgnette.data import DataReport
from lorgnette.processing.token_stats import TokenStats
from lorgnette.report.check_report import TITLES, CheckReport, SplitSummary
from lorgnette.report.html.check_page import MAX_CARDS, MAX_LISTED, write_check_page
from lorgnette.types import Example, Finding, FindingKind, Problem


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Every kind of finding, one of them very often."""
    Image.new("RGB", (900, 300), "teal").save(tmp_path / "one.jpg")
    long = "Donaudampfschifffahrtsgesellschaft<b>" * 6
    places = (tmp_path / "one.jpg", tmp_path / "gone.jpg")
    findings = [Finding(kind, Problem(tmp_path / "a.csv", 3, long, "do"), places) for kind in get_args(FindingKind)]
    findings += [Finding("tiny", Problem(tmp_path / "a.csv", row, "small", "do")) for row in range(MAX_LISTED + 50)]
    row = Example("x", (), tmp_path / "a.csv", 7)
    found = CheckReport(
        title="captions <1>.csv",
        data_report=DataReport(9, 9, (), 3, 0, (1, 1), (2, 2), None),
        findings=findings,
        split=SplitSummary(7, 2, 1),
        scripts={"Latin": (8, row), "Han": (1, row)},
        token_stats=TokenStats(9, 900, 100, 90, 90, 100.0, 400, ((0, 200, 8), (200, 400, 0), (400, 600, 1))),
        num_compared=3,
        skipped_checks=["nothing"],
    )
    write_check_page(tmp_path / "check.html", found)
    return tmp_path / "check.html"


def test_everything_is_on_it_escaped_or_counted(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    for title in TITLES.values():
        assert title in html
    assert "<b>" not in html
    assert "Training would not start" in html
    assert "the hold-out is one picture" in html
    assert html.count("data:image/jpeg;base64,") == len(TITLES)
    assert html.count("the file is gone") == len(TITLES)
    assert f"{MAX_LISTED + 51 - MAX_CARDS} more" in html
    assert "and 51 that only --json names" in html
    assert "400–599" in html
    assert html.count('class="barred"') == 4  # two of three bins, two scripts: nothing has no bar


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    report = DataReport(9, 9, (), 3, 0, (1, 1), (2, 2), None)
    write_check_page(tmp_path / "x.html", CheckReport("x", report, (), SplitSummary(9, 0, 0), {}, None, 0))
    html = (tmp_path / "x.html").read_text()
    assert "<article" not in html
    assert "Nothing was found against its rows." in html
    assert 'class="stops"' not in html
    write_check_page(tmp_path / "y.html", CheckReport("y", report, (), SplitSummary(9, 0, 0, "too few"), {}, None, 0))
    assert 'aria-labelledby="advice" class="stops"' in (tmp_path / "y.html").read_text()


def test_a_browser_shows_it_whole(written: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(written)
