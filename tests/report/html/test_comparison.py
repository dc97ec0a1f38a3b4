"""The comparison page: its contents, and its behavior in a real browser."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorgnette.report.html.charts import Curve, build_overlay
from lorgnette.report.html.comparison import (
    CellDifference,
    ComparisonCard,
    ComparisonPage,
    MetricRow,
    ScoreCell,
    write_comparison_page,
)

COLORS = ["red", "green", "blue", "yellow"]


def build_page(folder: Path) -> ComparisonPage:
    """base, a, b on four images; b gains most on red and loses on green; the last image has no reference."""
    for color in COLORS:
        Image.new("RGB", (64, 48), color).save(folder / f"{color}.png")
    values = ((0.5, 0.5, 0.5, None), (0.5, 0.6, 0.4, None), (0.9, 0.2, 0.6, None))
    difference = CellDifference(0, "+0.100, p 0.001", "+0.050 to +0.150", "better")
    cells = (
        ScoreCell("0.500", "0.4 to 0.6"),
        ScoreCell("0.500", "0.4 to 0.6", (difference, CellDifference(2, "−0.067", "", "unsure"))),
        ScoreCell("0.567", "0.4 to 0.6", (difference, CellDifference(1, "+0.067", "", "unsure"))),
    )
    return ComparisonPage(
        title="Side by side",
        summary="4 prompts",
        candidates=("base", "runs/a", "runs/with/a/long/name"),
        cards=[
            ComparisonCard(
                color, (folder / f"{color}.png",), "what?", references, (f"base {color}", "same", f"<i>{color}")
            )
            for color, references in zip(COLORS, [("one", "two"), ("r",), ("r",), ()], strict=True)
        ],
        metrics=[
            MetricRow("ROUGE-L", "similarity", "higher", cells, values),
            MetricRow(
                "edit", "changes", "lower", cells, tuple(tuple(v and 1 - v for v in column) for column in values)
            ),
            MetricRow("CIDEr-D", "similarity", "higher", (ScoreCell("–"),) * 3, (), "needs several images"),
        ],
        sort_metric="ROUGE-L",
        style=[("words", ("10", "5", "5", "4"))],
        charts=build_overlay("loss", [Curve("base", []), Curve("runs/a", [(1, 2.0), (2, 1.0)])]),
        settings=[("lora.rank", ("–", "16", "4"))],
        facts=[("Data", "d.csv")],
    )


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    write_comparison_page(tmp_path / "compare.html", build_page(tmp_path))
    return tmp_path / "compare.html"


def test_page_has_everything_escaped(page_path: Path) -> None:
    html = page_path.read_text(encoding="utf-8")
    for text in ("&lt;i&gt;red", "lora.rank", "needs several images", "p 0.001", "Reference 2", "lower is better"):
        assert text in html
    assert "<i>red" not in html
    assert html.count("data:image/jpeg;base64,") == 4
    assert "https://" not in html


def visible_ids(page: Any) -> list[str]:
    """The ids of the visible cards, from top to bottom."""
    return page.view.evaluate(
        "[...document.querySelectorAll('.comparison-card')].filter(c => !c.hidden).map(c => c.querySelector('.id').textContent)"
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
        assert page.view.locator(".comparison-card", has_text="red").first.locator(".gain").text_content() == "+0.400"
        assert page.complaints == []


def test_both_baseline_lists_stay_equal(opened: Any, page_path: Path) -> None:
    with opened(page_path) as page:
        differences = page.view.locator(".difference:visible")
        assert differences.count() == 4
        page.view.select_option("#table-baseline", "1")
        assert page.view.input_value("#baseline") == "1"
        assert page.view.input_value("#candidate") == "0"  # not compared with itself
        assert differences.all_inner_texts()[0].startswith("+0.067")
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
        return str(
            page.view.evaluate("document.activeElement.closest('.comparison-card')?.querySelector('.id').textContent")
        )

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
    cards = [ComparisonCard("a", (), "what?", (), ("yes", "no")), ComparisonCard("b", (), "", (), ("", "maybe"))]
    write_comparison_page(tmp_path / "c.html", ComparisonPage("t", "", ("x", "y"), cards))
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
        Image.fromarray(pixels).save(tmp_path / f"{index}.jpg", quality=60)
    answers = ("word " * 60, "short", "other")
    cards = [ComparisonCard(f"n{i}", (tmp_path / f"{i % 25}.jpg",), "p", ("r",) * 5, answers) for i in range(1000)]
    values = tuple(tuple(float(v) for v in noise.random(1000)) for _ in range(3))
    metric = MetricRow("M", "m", "higher", (ScoreCell("0.5"),) * 3, values)
    path = tmp_path / "many.html"
    write_comparison_page(path, ComparisonPage("many", "", ("a", "b", "c"), cards, [metric], "M"))
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
