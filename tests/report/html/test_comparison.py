"""The page of several: what stands in it, and what a real browser does with it."""

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

COLOURS = ["red", "green", "blue", "yellow"]


def a_comparison(folder: Path) -> ComparisonPage:
    """base, a, b on four pictures; b gains most on yellow and loses on green; the last picture has no reference."""
    for colour in COLOURS:
        Image.new("RGB", (64, 48), colour).save(folder / f"{colour}.png")
    each = ((0.5, 0.5, 0.5, None), (0.5, 0.6, 0.4, None), (0.9, 0.2, 0.6, None))
    gap = CellDifference(0, "+0.100, p 0.001", "+0.050 to +0.150", "better")
    cells = (
        ScoreCell("0.500", "0.4 to 0.6"),
        ScoreCell("0.500", "0.4 to 0.6", (gap, CellDifference(2, "−0.067", "", "unsure"))),
        ScoreCell("0.567", "0.4 to 0.6", (gap, CellDifference(1, "+0.067", "", "unsure"))),
    )
    return ComparisonPage(
        title="Side by side",
        summary="4 questions",
        candidates=("base", "runs/a", "runs/with/a/long/name"),
        cards=[
            ComparisonCard(
                colour, (folder / f"{colour}.png",), "what?", references, (f"base {colour}", "same", f"<i>{colour}")
            )
            for colour, references in zip(COLOURS, [("one", "two"), ("r",), ("r",), ()], strict=True)
        ],
        metrics=[
            MetricRow("ROUGE-L", "likeness", "higher", cells, each),
            MetricRow("edit", "changes", "lower", cells, tuple(tuple(v and 1 - v for v in side) for side in each)),
            MetricRow("CIDEr-D", "likeness", "higher", (ScoreCell("–"),) * 3, (), "one picture says nothing"),
        ],
        sort_metric="ROUGE-L",
        style=[("words", ("10", "5", "5", "4"))],
        charts=build_overlay("loss", [Curve("base", []), Curve("runs/a", [(1, 2.0), (2, 1.0)])]),
        settings=[("lora.rank", ("–", "16", "4"))],
        facts=[("Data", "d.csv")],
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_comparison_page(tmp_path / "compare.html", a_comparison(tmp_path))
    return tmp_path / "compare.html"


def test_it_holds_everything_escaped(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    for text in ("&lt;i&gt;red", "lora.rank", "one picture says nothing", "p 0.001", "Reference 2", "lower is better"):
        assert text in html
    assert "<i>red" not in html
    assert html.count("data:image/jpeg;base64,") == 4
    assert "https://" not in html


def shown(page: Any) -> list[str]:
    """The cards in sight, from top to bottom."""
    return page.view.evaluate(
        "[...document.querySelectorAll('.pair')].filter(c => !c.hidden).map(c => c.querySelector('.id').textContent)"
    )


def test_it_sorts(opened: Any, written: Path) -> None:
    with opened(written) as page:
        assert shown(page) == COLOURS
        page.view.select_option("#side", "2")
        page.view.select_option("#order", "gain")
        assert shown(page) == ["red", "blue", "green", "yellow"]
        page.view.select_option("#order", "loss")
        assert shown(page) == ["green", "blue", "red", "yellow"]
        page.view.select_option("#metric", "1")  # its values turned round, and lower is better: the same order
        assert shown(page) == ["green", "blue", "red", "yellow"]
        page.view.select_option("#over", "1")
        page.view.select_option("#order", "gain")
        assert shown(page) == ["red", "blue", "green", "yellow"]
        assert page.view.locator(".pair", has_text="red").first.locator(".gain").text_content() == "+0.400"
        assert page.complaints == []


def test_the_yardstick_is_one(opened: Any, written: Path) -> None:
    with opened(written) as page:
        gaps = page.view.locator(".gap:visible")
        assert gaps.count() == 4
        page.view.select_option("#yardstick", "1")
        assert page.view.input_value("#over") == "1"
        assert page.view.input_value("#side") == "0"  # not compared with itself
        assert gaps.all_inner_texts()[0].startswith("+0.067")
        better = page.view.locator(".pair").first.locator(".answer.better")
        assert better.count() == 1
        assert "red" in str(better.text_content())


def test_it_filters(opened: Any, written: Path) -> None:
    with opened(written) as page:
        page.view.fill("#find", "BASE gre")
        assert shown(page) == ["green"]
        assert page.view.text_content("#count") == "1 of 4"
        page.view.fill("#find", "blue.png")  # a picture's file is named nowhere in the text
        assert shown(page) == ["blue"]
        page.view.fill("#find", "nowhere")
        assert shown(page) == []
        assert page.view.locator("#none").is_visible()


def test_the_keyboard_is_enough(opened: Any, written: Path) -> None:
    def at() -> str:
        return str(page.view.evaluate("document.activeElement.closest('.pair')?.querySelector('.id').textContent"))

    with opened(written) as page:
        keys = page.view.keyboard
        keys.press("j")
        assert at() == "red"
        keys.press("ArrowDown")
        assert at() == "green"
        keys.press("k")
        keys.press("k")  # there is nothing above the first
        assert at() == "red"
        keys.press("/")
        keys.type("j yellow")  # letters in the field are letters
        assert shown(page) == []
        keys.press("Escape")
        assert shown(page) == COLOURS
        keys.press("/")
        keys.type("yellow")
        keys.press("Enter")
        assert (at(), shown(page)) == ("yellow", ["yellow"])
        keys.press("/")
        keys.press("Escape")
        page.view.select_option("#side", "2")
        page.view.focus("#side")
        keys.press("j")  # a letter in a list chooses there
        assert at() == "None"
        page.view.select_option("#side", "2")
        keys.press("Escape")
        keys.press("j")
        assert at() == "red"
        page.view.locator("body").press("l")
        assert shown(page)[0] == "green"
        keys.press("j")
        assert at() == "green"
        keys.press("g")
        assert shown(page)[0] == "red"
        keys.press("o")
        assert shown(page) == COLOURS
        keys.press("Control+f")  # the browser's own
        assert page.view.locator(".keys kbd").all_text_contents() == [
            "j", "k", "↓", "↑", "/", "Enter", "Esc", "g", "l", "o",
        ]  # fmt: skip
        assert page.complaints == []


def test_a_browser_shows_it_whole(written: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(written)


def test_a_phone_has_two_sides_in_sight_and_no_keys(opened: Any, written: Path) -> None:
    with opened(written, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        assert not page.view.locator(".keys").is_visible()
        page.view.evaluate("window.scrollTo(0, 0)")
        cell = page.view.locator(".sides tbody tr").first.locator("td").nth(1)
        box = cell.bounding_box()
        assert box["x"] + box["width"] <= 390
    with opened(written) as page:
        assert page.view.locator(".keys").is_visible()


def test_without_references_there_is_nothing_to_sort_by(opened: Any, tmp_path: Path) -> None:
    cards = [ComparisonCard("a", (), "what?", (), ("yes", "no")), ComparisonCard("b", (), "", (), ("", "maybe"))]
    write_comparison_page(tmp_path / "c.html", ComparisonPage("t", "", ("x", "y"), cards))
    with opened(tmp_path / "c.html") as page:
        page.view.keyboard.press("g")
        page.view.fill("#find", "maybe")
        assert shown(page) == ["b"]
        assert page.view.locator("#order").count() == 0
        assert page.complaints == []


def test_a_thousand_busy_pictures_stay_under_thirty_megabytes(opened: Any, tmp_path: Path) -> None:
    """25 pictures of pure noise, each on 40 cards: the budget is by picture shown, whatever lies in it."""
    noise = np.random.default_rng(0)
    for place in range(25):
        pixels = noise.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{place}.jpg", quality=60)
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
        assert shown(page)[:5] == [f"n{i}" for i in sorted(range(1000), key=lambda i: -round(gains[i], 4))[:5]]
        page.view.keyboard.press("l")
        for _ in range(3):  # the picture walked to stands below the tools, however far the way was
            page.view.keyboard.press("j")
            page.view.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            top, tools = page.view.evaluate(
                "[document.activeElement, document.getElementById('tools')].map(e => e.getBoundingClientRect().top)"
            )
            assert tools == 0
            assert 80 < top < 96
        assert page.complaints == []
