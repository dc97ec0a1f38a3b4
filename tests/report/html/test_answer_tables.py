"""The tables of labels and fields on a page and as CSV, and in a narrow window."""

import csv
import io
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.metrics.answer_tables import AnswerTables, count_answers
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.report import compute_report
from lorgnette.report.html.answer_tables import build_answer_sections
from lorgnette.report.html.comparison import ComparisonPage, write_comparison_page
from lorgnette.report.html.page import RunPage, write_run_page
from lorgnette.types import Example, Turn

REFERENCES = [["cat"]] * 4 + [["<b>dog</b>"]]
BEFORE, AFTER = ["I see a cat"] * 4 + [""], ["cat", "cat.", "cat", "<b>dog</b>", "<b>dog</b>"]
TABLES = count_answers(["accuracy"], [BEFORE, AFTER], REFERENCES)


def read_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_each_label_and_the_confusion_of_each_candidate() -> None:
    [section] = build_answer_sections(TABLES, ["before", "after"])
    counts, before, after = section.tables
    assert read_csv(counts.csv) == [
        [
            "label", "examples", "before, precision", "before, recall", "before, F1", "after, precision",
            "after, recall", "after, F1",
        ],
        ["<b>dog</b>", "1", "–", "0.00", "0.00", "0.50", "1.00", "0.67"],
        ["cat", "4", "–", "0.00", "0.00", "1.00", "0.75", "0.86"],
    ]  # fmt: skip
    assert read_csv(before.csv)[1:] == [["<b>dog</b>", "0", "0", "1"], ["cat", "0", "0", "4"]]
    assert read_csv(after.csv)[1:] == [["<b>dog</b>", "1", "0", "0"], ["cat", "1", "3", "0"]]
    assert before.hint.endswith("The most common of “other”: “I see a cat” (4), “(empty)” (1).")
    assert [(cell.kind, cell.share) for cell in after.rows[1][1]] == [("wrong", 0.25), ("right", 0.75), ("", 0.0)]


def test_a_long_answer_that_is_no_label_is_cut() -> None:
    tables = count_answers(["accuracy"], [["long " * 90]], [["cat"]])
    [section] = build_answer_sections(tables, ["before"])
    hint = section.tables[1].hint
    assert "…” (1)." in hint
    assert hint.count("long") < 20


def test_a_known_label_without_examples_has_a_column_but_no_row() -> None:
    tables = count_answers(["accuracy"], [["fish", "cat"]], [["cat"], ["cat"]], ["fish"])
    [section] = build_answer_sections(tables, ["base"])
    assert read_csv(section.tables[1].csv) == [["label", "cat", "fish", "other"], ["cat", "1", "1", "0"]]


def test_columns_of_labels_that_nothing_has_are_left_out_and_many_stand_upright() -> None:
    names = [f"label {i}" for i in range(9)]
    for count, is_wide in ((2, False), (9, True)):
        used = names[:count]
        [section] = build_answer_sections(count_answers(["accuracy"], [used], [[name] for name in used], names), ["x"])
        assert section.tables[1].header == ("label", *used, "other")
        assert section.tables[1].is_wide == is_wide


def test_many_labels_have_a_list_of_mistakes() -> None:
    names = [f"label {i:03}" for i in range(51)]
    tables = count_answers(["accuracy"], [["label 000", *names[:-1]]], [[name] for name in names])
    mistakes = build_answer_sections(tables, ["base"])[0].tables[1]
    assert mistakes.title == "Most common mistakes, base"
    assert read_csv(mistakes.csv)[:2] == [["label", "answer", "examples"], ["label 001", "label 000", "1"]]


def test_fields() -> None:
    tables = count_answers(["json-valid"], [['{"a": 1, "b": 2}', "no"]], [['{"a": 1}'], ['{"a": 2}']])
    [section] = build_answer_sections(tables, ["base"])
    assert section.hint == "base: 1 of 2 answers are a JSON object, 0 have every field right."
    assert read_csv(section.tables[0].csv) == [
        ["field", "examples", "base, accuracy", "base, wrong", "base, missing", "base, only in answer"],
        ["a", "2", "0.50", "0", "1", "0"],
        ["b", "0", "–", "0", "0", "1"],
    ]


def test_without_tables_there_are_no_sections() -> None:
    assert build_answer_sections(AnswerTables(), ["before", "after"]) == []


def test_the_page_shows_them_escaped_and_as_csv(tmp_path: Path) -> None:
    write_run_page(tmp_path / "report.html", RunPage(title="x", tables=TABLES))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("&lt;b&gt;dog&lt;/b&gt;") >= 5
    assert "<b>dog" not in html
    assert '<td class="right" style="--share:0.75">3</td>' in html
    links = [urllib.parse.unquote(text) for text in re.findall(r'href="data:text/csv;charset=utf-8,([^"]*)"', html)]
    assert [table.csv for table in build_answer_sections(TABLES, ["before", "after"])[0].tables] == links


def test_fifty_labels_scroll_inside_a_narrow_window(tmp_path: Path, opened: Callable[..., Any]) -> None:
    names = [f"a rather long label {i}" for i in range(50)]
    tables = count_answers(["accuracy"], [names, names[::-1]], [[name] for name in names])
    write_run_page(tmp_path / "report.html", RunPage(title="x", tables=tables))
    with opened(tmp_path / "report.html", viewport={"width": 390, "height": 800}) as page:
        assert page.view.evaluate("document.documentElement.scrollWidth") <= 390
        widths = page.view.evaluate("[...document.querySelectorAll('.answer-table')].map(table => table.scrollWidth)")
        assert len(widths) == 3
        assert max(widths) > 1000
        # The label stays beside its numbers.
        page.view.evaluate("document.querySelectorAll('.scroll').forEach(part => part.scrollLeft = 900)")
        label = page.view.locator(".answer-table").nth(1).locator("tbody th").first.bounding_box()
        assert label["x"] >= 0
        assert label["height"] < 80  # its words are not broken into letters
        assert page.complaints == []


@pytest.mark.parametrize("num_labels", [5, 20])
def test_a_confusion_table_fits_a_usual_window(tmp_path: Path, opened: Callable[..., Any], num_labels: int) -> None:
    names = [f"a rather long label {i}" for i in range(num_labels)]
    tables = count_answers(["accuracy"], [names, names[::-1]], [[name] for name in names])
    write_run_page(tmp_path / "report.html", RunPage(title="x", tables=tables))
    with opened(tmp_path / "report.html", viewport={"width": 1200, "height": 800}) as page:
        hidden = "[...document.querySelectorAll('.scroll')].map(part => part.scrollWidth - part.clientWidth)"
        assert page.view.evaluate(hidden) == [0, 0, 0]


def test_the_comparison_shows_them_for_each_candidate(tmp_path: Path) -> None:
    prompts = [
        EvalPrompt(Example(str(i), (Turn("user", ("what?",)),), Path("d.csv"), i), (text,))
        for i, text in enumerate(["cat", "dog", "cat"])
    ]
    answers = [["cat", "cat", "a cat"], ["cat", "dog", "cat"], ["dog", "dog", "dog"]]
    report = compute_report(["accuracy", "macro-F1"], prompts, answers)
    page = ComparisonPage(candidates=("base", "runs/a", "runs/b"), prompts=prompts, answers=answers, report=report)
    write_comparison_page(tmp_path / "compare.html", page)
    html = (tmp_path / "compare.html").read_text(encoding="utf-8")
    for title in ("Each label", "Answers, base", "Answers, runs/a", "Answers, runs/b"):
        assert f">{title}</h3>" in html
    assert html.count('class="numbers answer-table"') == 4
