"""The result of `evaluate` and `compare` in a notebook."""

from pathlib import Path

import pytest

from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.metrics.report import MetricReport, compute_report
from lorgnette.report.evaluation import Comparison, Evaluation


@pytest.fixture
def report(conversations) -> MetricReport:
    prompts = group_by_prompt(conversations[:2])
    answers = [[prompt.references[0] for prompt in prompts], ["x"] * len(prompts)]
    return compute_report(["exact-match", "edit-distance"], prompts, answers)


def test_scores_are_rows_and_a_table(report: MetricReport, tmp_path: Path) -> None:
    evaluation = Evaluation.from_report(report, ("mine", "<other>"))
    rows = evaluation.to_rows()
    pairs = [(row["candidate"], row["metric"]) for row in rows]
    assert pairs[:2] == [("mine", "exact-match"), ("mine", "edit-distance")]
    assert [row["value"] for row in rows if row["metric"] == "exact-match"] == [1.0, 0.0]
    html = evaluation._repr_html_()
    assert "&lt;other&gt;" in html
    assert html.index("mine") < html.index("exact-match") < html.index("1.000")
    assert evaluation.main_metric == report.main_metric
    if pytest.importorskip("pandas"):
        assert evaluation.to_pandas().pivot(index="metric", columns="candidate", values="value").shape == (2, 2)


def test_a_comparison_has_its_page(report: MetricReport, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    page.write_text("<p>page</p>")
    comparison = Comparison.from_report(report, ("a", "b"), path=page, verdict="a is better.")
    assert Path(comparison).read_text() == "<p>page</p>"
    assert "a is better." in comparison._repr_html_()
    assert str(page) in comparison._repr_html_()
    first, second = (row for row in comparison.to_rows() if row["metric"] == "exact-match")
    assert (first["difference"], first["p_value"], second["difference"]) == (None, None, -1.0)
    assert 0 < second["p_value"] <= 1
    assert "srcdoc" in comparison.show_report()._repr_html_()
