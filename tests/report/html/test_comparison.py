"""The comparison page: its contents, and its behavior in a real browser."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pytest

from lorgnette.metrics.bootstrap import Difference
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.report import MetricReport, compute_report
from lorgnette.metrics.score import Score
from lorgnette.report.html.charts import Curve, build_overlay
from lorgnette.report.html.comparison import ComparisonPage, write_comparison_page
from lorgnette.report.verdict import Verdict
from lorgnette.types import Example, Image, Turn

COLORS = ["red", "green", "blue", "yellow"]


def build_prompt(id: str, image: Path | None, text: str, references: tuple[str, ...]) -> EvalPrompt:
    parts = (*([Image(image)] if image else []), text)
    return EvalPrompt(Example(id, (Turn("user", parts),), Path("d.csv"), 1), references)


def build_report(values: list[list[float]], indices: tuple[int, ...], pairs: dict[tuple[int, int], Difference]) -> Any:
    """ROUGE-L with these values and differences, edit-distance with 1 - values, and an undefined CIDEr-D."""
    scores = tuple(
        (
            Score("ROUGE-L", sum(own) / len(own), tuple(own), (0.4, 0.6)),
            Score("edit-distance", 1 - sum(own) / len(own), tuple(1 - value for value in own), (0.4, 0.6)),
            Score("CIDEr-D", None, (), None, "needs several images"),
        )
        for own in values
    )
    undefined = Difference("CIDEr-D", None, ())
    rows = {pair: (row, replace(row, name="edit-distance"), undefined) for pair, row in pairs.items()}
    differences = rows | {(b, a): tuple(row.negate() for row in rows[a, b]) for a, b in rows}
    style = compute_report((), [build_prompt("a", None, "", ("r",))], [["four short words here"]]).styles[0]
    names = ("ROUGE-L", "edit-distance", "CIDEr-D")
    return MetricReport(names, indices, scores, differences, (style,) * len(values), style)


def build_page(folder: Path) -> ComparisonPage:
    """base, a, b on four images; b gains most on red and loses on green; the last image has no reference."""
    for color in COLORS:
        PIL.Image.new("RGB", (64, 48), color).save(folder / f"{color}.png")
    significant = Difference("ROUGE-L", 0.1, (0.4, -0.3, 0.1), (0.05, 0.15), 0.001)
    pairs = {(1, 0): significant, (2, 0): significant, (2, 1): Difference("ROUGE-L", 0.067, (0.4, -0.4, 0.2))}
    return ComparisonPage(
        candidates=("base", "runs/a", "runs/with/a/long/name"),
        prompts=[
            build_prompt(color, folder / f"{color}.png", "what?", references)
            for color, references in zip(COLORS, [("one", "two"), ("r",), ("r",), ()], strict=True)
        ],
        answers=[[f"base {color}" for color in COLORS], ["same"] * 4, [f"<i>{color}" for color in COLORS]],
        report=build_report([[0.5, 0.5, 0.5], [0.5, 0.6, 0.4], [0.9, 0.2, 0.6]], (0, 1, 2), pairs),
        verdict=Verdict(
            "worked", "runs/with/a/long/name is better.", "In 2 of 3 images <b>.", "With 3 images, chance."
        ),
        compared=[("step", ("–", "20 (the best)", "60 (the last)"))],
        facts=[("Data", [("File", "d.csv"), ("Questions", "4, 3 with references")])],
        next_steps=[("Check it", "lorgnette verify runs/a")],
        charts=build_overlay("loss", [Curve("base", []), Curve("runs/a", [(1, 2.0), (2, 1.0)])]),
        settings=[("lora.rank", ("–", "16", "4"))],
    )


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    write_comparison_page(tmp_path / "compare.html", build_page(tmp_path))
    return tmp_path / "compare.html"


def test_page_has_everything_escaped(page_path: Path) -> None:
    html = page_path.read_text(encoding="utf-8")
    for text in ("&lt;i&gt;red", "lora.rank", "needs several images", "Reference 2", "lower is better"):
        assert text in html
    assert "<i>red" not in html
    assert html.count("data:image/jpeg;base64,") == 4
    assert html.count("difference better") == html.count("difference worse") == 4
    assert "</span>runs/with/a/long/name is better.</h2>" in html
    for text in ("In 2 of 3 images &lt;b&gt;.", "With 3 images, chance.", "20 (the best)", "4, 3 with references"):
        assert text in html
    assert "<title>base, runs/a, runs/with/a/long/name · comparison · lorgnette</title>" in html
    assert html.count('<span class="file">') == 4
    assert '</span> · <span class="place">row 1</span>' in html
    assert "<span>verify</span> <span>runs/a</span>" in html
    assert "https://" not in html


def test_trained_images_and_unlike_answers_are_shown(tmp_path: Path) -> None:
    page = replace(
        build_page(tmp_path),
        trained_on=[(False,) * 4, (True, False, False, True), ()],
        overlap_summaries=["–", "2 of 4 questions", "unknown"],
        generations=["greedy", "greedy", "other"],
    )
    write_comparison_page(tmp_path / "c.html", page)
    html = (tmp_path / "c.html").read_text(encoding="utf-8")
    marks = ["trained on: runs/a<" in card for card in html.split("<article")[1:]]
    assert marks == [True, False, False, True]
    assert "<td>–</td><td>2 of 4 questions</td><td>unknown</td>" in html
    assert '<th scope="row">answers</th><td>greedy</td><td>greedy</td><td>other</td>' in html


def test_tables_are_given_away_as_csv(page_path: Path) -> None:
    """The link has the whole table, so that it works without a script and without a network."""
    html = page_path.read_text(encoding="utf-8")
    links = dict(re.findall(r'download="([\w.]+)" href="data:text/csv;charset=utf-8,([^"]*)"', html))
    scores = list(csv.DictReader(io.StringIO(unquote(links["scores.csv"]))))
    assert len(scores) == 3 * 3 * 2  # metrics, candidates, baselines
    row = next(r for r in scores if (r["metric"], r["candidate"], r["baseline"]) == ("ROUGE-L", "runs/a", "base"))
    assert [row[name] for name in ("value", "difference", "difference low", "difference high", "p")] == [
        "0.5", "0.1", "0.05", "0.15", "0.001",
    ]  # fmt: skip
    assert {row["difference"] for row in scores if row["metric"] == "CIDEr-D"} == {""}
    style = list(csv.reader(io.StringIO(unquote(links["style.csv"]))))
    assert style[0] == ["", "base", "runs/a", "runs/with/a/long/name", "references"]
    assert "curves.csv" in links


def visible_ids(page: Any) -> list[str]:
    """The ids of the visible cards, from top to bottom."""
    return page.view.evaluate(
        "[...document.querySelectorAll('.comparison-card')].filter(c => !c.hidden).map(c => c.dataset.id)"
    )


def test_cards_are_sorted(opened: Any, page_path: Path) -> None:
    with opened(page_path) as page:
        assert visible_ids(page) == COLORS
        page.view.select_option("#candidate", "2")
        page.view.select_option("#order", "gain")
        assert visible_ids(page) == ["red", "blue", "green", "yellow"]
        page.view.select_option("#order", "loss")
        assert visible_ids(page) == ["green", "blue", "red", "yellow"]
        page.view.select_option("#metric", "1")  # 1 - values, and lower is better: the same order
        assert visible_ids(page) == ["green", "blue", "red", "yellow"]
        page.view.select_option("#baseline", "1")
        page.view.select_option("#order", "gain")
        assert visible_ids(page) == ["red", "blue", "green", "yellow"]
        gain = page.view.locator(".comparison-card", has_text="red").first.locator(".gain")
        assert gain.text_content() == "gain in edit-distance +0.400"
        assert page.complaints == []


def test_both_baseline_lists_stay_equal(opened: Any, page_path: Path) -> None:
    with opened(page_path) as page:
        differences = page.view.locator(".difference:visible")
        assert differences.count() == 4
        page.view.select_option("#table-baseline", "1")
        assert page.view.input_value("#baseline") == "1"
        assert page.view.input_value("#candidate") == "0"  # not compared with itself
        assert differences.all_inner_texts()[1].startswith("+0.067")
        better = page.view.locator(".comparison-card").first.locator(".answer.better")
        assert better.count() == 1
        assert "red" in str(better.text_content())


def test_cards_are_filtered(opened: Any, page_path: Path) -> None:
    with opened(page_path) as page:
        page.view.fill("#find", "BASE gre")
        assert visible_ids(page) == ["green"]
        assert page.view.text_content("#count") == "1 of 4"
        page.view.fill("#find", "blue.png")  # the name of an image file is not in the text
        assert visible_ids(page) == ["blue"]
        page.view.fill("#find", "nowhere")
        assert visible_ids(page) == []
        assert page.view.locator("#no-match").is_visible()


def test_the_keyboard_controls_everything(opened: Any, page_path: Path) -> None:
    def focused_id() -> str:
        return str(page.view.evaluate("document.activeElement.closest('.comparison-card')?.dataset.id"))

    with opened(page_path) as page:
        keys = page.view.keyboard
        keys.press("j")
        assert focused_id() == "red"
        keys.press("ArrowDown")
        assert focused_id() == "green"
        keys.press("k")
        keys.press("k")  # nothing is above the first card
        assert focused_id() == "red"
        keys.press("/")
        keys.type("j yellow")  # letters in the field are letters
        assert visible_ids(page) == []
        keys.press("Escape")
        assert visible_ids(page) == COLORS
        keys.press("/")
        keys.type("yellow")
        keys.press("Enter")
        assert (focused_id(), visible_ids(page)) == ("yellow", ["yellow"])
        keys.press("Escape")  # also outside of the field
        assert visible_ids(page) == COLORS
        keys.press("/")
        keys.press("Escape")
        page.view.select_option("#candidate", "2")
        page.view.focus("#candidate")
        keys.press("j")  # a letter in a list selects there
        assert focused_id() == "None"
        page.view.select_option("#candidate", "2")
        keys.press("Escape")
        keys.press("j")
        assert focused_id() == "red"
        page.view.locator("body").press("l")
        assert visible_ids(page)[0] == "green"
        keys.press("j")
        assert focused_id() == "green"
        keys.press("g")
        assert visible_ids(page)[0] == "red"
        keys.press("o")
        assert visible_ids(page) == COLORS
        keys.press("Control+f")  # belongs to the browser
        assert page.view.locator(".keys kbd").all_text_contents() == [
            "j", "k", "↓", "↑", "/", "Enter", "Esc", "g", "l", "o",
        ]  # fmt: skip
        assert page.complaints == []


def test_page_fits_every_window(page_path: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(page_path)


def test_phone_shows_two_candidates_and_no_keys(opened: Any, page_path: Path) -> None:
    with opened(page_path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        assert not page.view.locator(".keys").is_visible()
        page.view.evaluate("window.scrollTo(0, 0)")
        cell = page.view.locator(".candidates tbody tr").first.locator("td").nth(1)
        box = cell.bounding_box()
        assert box["x"] + box["width"] <= 390
    with opened(page_path) as page:
        assert page.view.locator(".keys").is_visible()


def test_without_references_cards_cannot_be_sorted(opened: Any, tmp_path: Path) -> None:
    prompts, answers = (
        [build_prompt("a", None, "what?", ()), build_prompt("b", None, "", ())],
        [["yes", ""], ["no", "maybe"]],
    )
    report = compute_report(["ROUGE-L"], prompts, answers)
    write_comparison_page(tmp_path / "c.html", ComparisonPage(("x", "y"), prompts, answers, report))
    with opened(tmp_path / "c.html") as page:
        page.view.keyboard.press("g")
        page.view.fill("#find", "maybe")
        assert visible_ids(page) == ["b"]
        assert page.view.locator("#order").count() == 0
        assert page.complaints == []


def test_a_thousand_noisy_images_stay_under_30_mb(opened: Any, tmp_path: Path) -> None:
    """25 images of noise, each on 40 cards: the limit counts every use of an image."""
    noise = np.random.default_rng(0)
    for index in range(25):
        pixels = noise.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{index}.jpg", quality=60)
    prompts = [build_prompt(f"n{i}", tmp_path / f"{i % 25}.jpg", "p", ("r",) * 5) for i in range(1000)]
    answers = [["word " * 60] * 1000, ["short"] * 1000, ["other"] * 1000]
    values = [noise.random(1000).tolist() for _ in range(3)]
    pairs = {(a, b): Difference("ROUGE-L", 0.0, ()) for a, b in ((1, 0), (2, 0), (2, 1))}
    report = build_report(values, tuple(range(1000)), pairs)
    path = tmp_path / "many.html"
    write_comparison_page(path, ComparisonPage(("a", "b", "c"), prompts, answers, report))
    assert path.stat().st_size < 30_000_000
    with opened(path) as page:
        page.view.keyboard.press("g")
        gains = [b - a for a, b in zip(values[0], values[1], strict=True)]
        assert visible_ids(page)[:5] == [f"n{i}" for i in sorted(range(1000), key=lambda i: -round(gains[i], 4))[:5]]
        page.view.keyboard.press("l")
        for _ in range(3):  # the focused card is below the controls, however far the jump
            page.view.keyboard.press("j")
            page.view.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            top, controls_top = page.view.evaluate(
                "[document.activeElement, document.getElementById('controls')].map(e => e.getBoundingClientRect().top)"
            )
            assert controls_top == 0
            assert 80 < top < 96
        assert page.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_is_readable_without_a_script(width: int, opened: Any, page_path: Path) -> None:
    with opened(page_path, viewport={"width": width, "height": 900}, java_script_enabled=False) as page:
        for text in ("runs/with/a/long/name is better.", "20 (the best)", "base red", "Download CSV"):
            assert page.view.get_by_text(text).first.is_visible()
        assert page.view.locator(".comparison-card:visible").count() == 4
        assert not page.view.locator("#controls, .copy, #theme, .keys").filter(visible=True).count()
