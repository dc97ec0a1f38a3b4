"""What results look like in a notebook, and as tables."""

import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.report.notebook import MAX_CARDS, MAX_ROWS, Answers, InlinePage, Table, render_result
from lorgnette.types import PredictionRow


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    PIL.Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    return Answers(
        [
            PredictionRow("a", (tmp_path / "red.png",), "what?", ("red",), base="<b>long</b>", tuned="red"),
            PredictionRow("b", (tmp_path / "gone.png",), "", (), base="x", tuned="y", tuned_is_cut=True),
        ]
    )


def test_answers_are_shown_beside_their_images(answers: Answers) -> None:
    html = answers._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 1
    assert "gone.png: file not found" in html
    assert "&lt;b&gt;long&lt;/b&gt;" in html  # text, not markup
    assert html.index("reference") < html.index("before") < html.index("after")
    assert "y …" in html
    many = Answers([answers[0]] * (MAX_CARDS + 3))._repr_html_()
    assert many.count("<figure") == MAX_CARDS
    assert "… and 3 more" in many


def test_answers_are_texts_and_rows(answers: Answers) -> None:
    assert answers.texts == ["red", "y"]
    assert [(row["before"], row["after"]) for row in answers.to_rows()] == [("<b>long</b>", "red"), ("x", "y")]
    [alone] = Answers([PredictionRow("a", (), "p", (), base="only")]).to_rows()
    assert alone == {"id": "a", "images": [], "prompt": "p", "references": [], "answer": "only"}


def test_tables_become_data_frames(answers: Answers) -> None:
    pandas = pytest.importorskip("pandas")
    table = Table([{"step": 1, "loss": 0.5}, {"step": 2, "text": "b"}])
    frame = table.to_pandas()
    assert list(frame.columns) == ["step", "loss", "text"]
    assert frame["step"].tolist() == [1, 2]
    assert isinstance(answers.to_pandas(), pandas.DataFrame)
    assert answers.to_pandas()["after"].tolist() == ["red", "y"]
    assert Table().to_pandas().empty


def test_without_pandas_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LorgnetteError, match="pandas is not installed · to_pandas · pip install pandas"):
        Table([{"a": 1}]).to_pandas()


def test_a_table_has_a_row_for_each_record() -> None:
    rows: list[dict[str, Any]] = [{"name": "<i>", "value": 0.123456789, "noise": 3e-10, "none": None}] * (MAX_ROWS + 1)
    html = Table(rows)._repr_html_()
    assert html.count("<tr>") == MAX_ROWS + 1  # with the head
    for text in ("&lt;i&gt;", ">0.1235<", ">0<", "… and 1 more"):
        assert text in html
    assert "None" not in html


def test_a_page_is_shown_in_a_frame(tmp_path: Path) -> None:
    """A link to a file does not work in Colab."""
    page = tmp_path / "report.html"
    page.write_text('<p class="a">x & y</p>', encoding="utf-8")
    html = InlinePage(page, height=300)._repr_html_()
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;x &amp; y&lt;/p&gt;"' in html
    assert 'height="300"' in html
    assert str(page) in render_result(title="A & B", lines=["one"], link=page)


def test_p_values_and_intervals_are_said_in_words() -> None:
    html = Table([{"low": 0.1, "high": 0.2, "p_value": p} for p in (1 / 999, 0.0312345, 1 / 1001)])._repr_html_()
    for part in (">95 % interval from<", ">to<", ">p<", ">0.001<", ">0.031<", ">&lt; 0.001<"):
        assert part in html, part
    assert "p_value" not in html
