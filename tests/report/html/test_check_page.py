from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from markupsafe import escape
from PIL import Image

from lorgnette.data import DataReport
from lorgnette.processing.token_stats import TokenStats
from lorgnette.report.check_report import TITLES, CheckReport, SplitSummary
from lorgnette.report.html.check_page import MAX_CARDS, MAX_GROUP_IMAGES, MAX_LISTED, write_check_page
from lorgnette.types import Example, Finding, FindingKind, Problem


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with every kind of finding, and very many of one kind."""
    Image.new("RGB", (900, 300), "teal").save(tmp_path / "one.jpg")
    message = "one.jpg: " + "Donaudampfschifffahrtsgesellschaft<b>" * 6
    images = (tmp_path / "one.jpg", tmp_path / "gone.jpg")
    findings = [Finding(kind, Problem(tmp_path / "a.csv", 3, message, "do"), images) for kind in get_args(FindingKind)]
    findings += [Finding("tiny", Problem(tmp_path / "a.csv", row, "small", "do")) for row in range(MAX_LISTED + 50)]
    row = Example("x", (), tmp_path / "a.csv", 7)
    report = CheckReport(
        title="captions <1>.csv",
        data_report=DataReport(9, 9, (), 3, 0, (1, 1), (2, 2), None),
        findings=findings,
        split=SplitSummary(7, 2, 1),
        scripts={"Latin": (8, row), "Han": (1, row)},
        token_stats=TokenStats(9, 900, 100, 90, 90, 100.0, 400, ((0, 200, 8), (200, 400, 0), (400, 600, 1))),
        num_compared=3,
        skipped_checks=["nothing"],
    )
    write_check_page(tmp_path / "check.html", report)
    return tmp_path / "check.html"


def test_every_finding_is_shown_or_counted(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    for title in TITLES.values():
        assert escape(title) in html
    assert "<b>" not in html
    assert "✗</span>Training would not start.</h2>" in html
    assert "all 2 held-out rows have the same image" in html
    assert html.count("data:image/jpeg;base64,") == len(TITLES)
    assert html.count('class="missing"') == len(TITLES) - 2  # the text of a row that cannot be used says why
    assert f"{MAX_LISTED + 51 - MAX_CARDS} more" in html
    assert "and 51 more, listed by --json" in html
    assert "400–599" in html
    assert html.count('class="fill"') == 4  # two of three bins and two scripts; an empty bin has no bar


def test_data_without_problems(tmp_path: Path) -> None:
    data_report = DataReport(9, 9, (), 3, 0, (1, 1), (2, 2), None)
    write_check_page(tmp_path / "x.html", CheckReport("x", data_report, (), SplitSummary(9, 0, 0), {}, None, 0))
    html = (tmp_path / "x.html").read_text()
    assert "<article" not in html
    assert "✓</span>Ready to train.</h2>" in html
    assert "No problems found in 9 rows." in html
    assert 'class="blocking"' not in html
    no_split = SplitSummary(9, 0, 0, "too few")
    write_check_page(tmp_path / "y.html", CheckReport("y", data_report, (), no_split, {}, None, 0))
    assert 'aria-labelledby="split" class="blocking"' in (tmp_path / "y.html").read_text()


def test_in_a_browser(page: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(page)


def test_equal_findings_are_one_card_with_all_rows(tmp_path: Path) -> None:
    problems = [
        Problem(tmp_path / "a.csv", row, f"image is missing ({row}.png)", "do", f"{row}.png") for row in range(2, 32)
    ]
    report = CheckReport(
        "x", DataReport(30, 0, (), 0, 0, None, None, None), [Finding("unusable", problem) for problem in problems],
        SplitSummary(0, 0, 0), {}, None, 0,
    )  # fmt: skip
    write_check_page(tmp_path / "x.html", report)
    html = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert html.count("<article") == html.count("image is missing (2.png, 3.png, ") == 1
    assert "a.csv, rows 2–31" in html


def test_a_card_about_several_rows_shows_their_images(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "abcdefgh"]
    for path in paths:
        Image.new("RGB", (8, 8), "teal").save(path)
    findings = [
        Finding("repeated-row", Problem(tmp_path / "a.csv", row, f"duplicate of row {row}", "do"), (path,))
        for row, path in enumerate(paths, start=2)
    ]
    report = CheckReport(
        "x", DataReport(30, 30, (), 8, 0, None, None, None), findings, SplitSummary(28, 2, 2), {}, None, 0
    )  # fmt: skip
    write_check_page(tmp_path / "x.html", report)
    html = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert html.count("<article") == 1
    assert html.count("data:image/jpeg") == MAX_GROUP_IMAGES


def test_paths_are_relative_to_the_data_and_commands_and_basis_are_shown(tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / "elsewhere"
    findings = [
        Finding("unusable", Problem(tmp_path / "a.csv", 3, f"{message} ({where})", "do", str(where)))
        for message, where in (("image is cut off", tmp_path / "images/b.jpg"), ("broken", elsewhere / "c.jpg"))
    ]
    report = CheckReport(
        "a.csv", DataReport(9, 7, (), 3, 0, None, None, None), findings,
        SplitSummary(5, 2, 2), {}, None, 0, basis=[("model", f"{Path.home()}/models/qwen"), ("prompt", "'What?'")],
        next_steps=[("Mend these rows", "lorgnette check a.csv")], folders=[tmp_path, elsewhere],
    )  # fmt: skip
    write_check_page(tmp_path / "x.html", report)
    html = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in html
    assert str(elsewhere) not in html
    assert str(Path.home() / "models") not in html
    for text in (
        "(images/b.jpg)",
        "(c.jpg)",
        "~/models/qwen",
        "&#39;What?&#39;",
        "Mend these rows",
        "<span>a.csv</span>",
    ):
        assert text in html
    assert "<title>a.csv · check of a data set · lorgnette</title>" in html


def test_the_keyboard_reaches_commands_and_folded_lines(page: Path, opened: Callable[..., Any]) -> None:
    with opened(page, viewport={"width": 1280, "height": 900}) as browser_page:
        reached = []
        for _ in range(3):
            browser_page.view.keyboard.press("Tab")
            reached.append(browser_page.view.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert reached[0] == "theme"
        assert "SUMMARY" in reached
        browser_page.view.locator("details summary").first.focus()
        browser_page.view.keyboard.press("Enter")
        assert browser_page.view.locator("details li").first.is_visible()
        assert browser_page.complaints == []
