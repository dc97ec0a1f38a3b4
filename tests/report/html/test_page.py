import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_pages import expect, wait_until
from PIL import Image

from lorgnette.metrics.score import ScoreRow
from lorgnette.report.html.charts import Curve, format_number
from lorgnette.report.html.page import RunPage, SampleHistory, flatten_settings, mark_words, write_run_page
from lorgnette.report.verdict import Verdict
from lorgnette.types import PixelBox, PredictionRow


def build_page(folder: Path) -> RunPage:
    Image.new("RGB", (640, 480), "teal").save(folder / "one.jpg")
    Image.new("RGB", (300, 900), "orange").save(folder / "two.png")
    long = "Donaudampfschifffahrtsgesellschaftskapitän" * 6
    return RunPage(
        title="COCO captions",
        summary="62 steps on 496 examples in 21 s; loss 3.90 → 0.12.",
        settings={
            "lora": {"r": 64, "targets": ["q_proj", "v_proj"]},
            "train": {"lr": 1e-4, "resume": None, "fast": True},
        },
        verdict=Verdict("worked", "It worked.", "The evidence & more.", "The doubt."),
        compared=[("Before", "the base model"), ("Asked about", long)],
        facts=[("Model", [("Base model", "Qwen2-VL-2B-Instruct"), ("Device", long)])],
        stages=[("steps", "12.5 s")],
        best=("eval loss", 20.0),
        curves=[
            Curve("loss", [(float(step), 4 / step) for step in range(1, 63)]),
            Curve("eval loss", [(10.0, 1.0), (20.0, 0.5)]),
            Curve("lr", [(float(step), 1e-4 * (1 - step / 62)) for step in range(62)]),
        ],
        rows=[
            PredictionRow(
                "a", (folder / "one.jpg",), "COCO Yes:", ("a cat",), "The image shows <b>a cat</b>", "A cat."
            ),
            PredictionRow(
                "b",
                (folder / "one.jpg", folder / "two.png"),
                "请描述：",
                ("一只猫", "两只猫"),
                "",
                "一只狗",
                tuned_boxes=(PixelBox((10.0, 20.0, 90.0, 500.0), "狗", 1), PixelBox((5.0, 5.0))),
            ),
            PredictionRow("c", (folder / "gone.jpg",), "صف:", ("قطة",), long, None),
            PredictionRow("d", (), "", (), "same", "same"),
        ],
        problems=["data.csv, row 7: image cannot be decoded"],
        notes=["a note"],
        next_steps=[("Ask it", f"lorgnette predict {long}.jpg --adapter runs/coco")],
        scores=[
            ScoreRow("CIDEr", "12.4 (10.0–14.0)", "98.1", "better", difference="+85.7 (+80.0 to +90.0)"),
            ScoreRow("odd", "–", "–", note="needs several images", description="an odd score"),
        ],
        gains=[0.5, -0.25, None, None],
        samples=[
            SampleHistory(PredictionRow("a", (folder / "one.jpg",), "", ("a cat",)), ((0, "The image"), (31, "A cat.")))
        ],
    )


def test_page_has_everything_escaped(tmp_path: Path) -> None:
    write_run_page(tmp_path / "report.html", build_page(tmp_path))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;a cat&lt;/b&gt;" in html
    assert "<b>a cat" not in html
    for text in ("一只猫", "قطة", "data.csv, row 7", "a note", "98.1", "lora.r", "[q_proj, v_proj]", "(empty)"):
        assert text in html
    assert "same words as the reference" in html  # but for a capital and a full stop
    assert "unchanged" in html
    assert "further from the reference" in html
    assert "Reference 2" in html
    assert "needs several images" in html
    assert "The evidence &amp; more." in html
    assert "1 score that is the same as before" in html
    assert "12.5 s" in html
    assert "step 31" in html
    assert "file not found" in html
    assert html.count("data:image/jpeg;base64,") == 4
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html


def test_empty_page_has_no_sections(tmp_path: Path) -> None:
    write_run_page(tmp_path / "report.html", RunPage(title="Nothing yet"))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<section" not in html
    assert "Nothing yet" in html


def test_default_summary_is_about_the_loss(tmp_path: Path) -> None:
    write_run_page(tmp_path / "report.html", RunPage(title="x", curves=[Curve("loss", [(1, 3.9), (62, 0.12)])]))
    assert "62 steps; loss 3.9\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}0.12." in (tmp_path / "report.html").read_text()


def test_answers_of_one_model_are_called_predictions(tmp_path: Path) -> None:
    write_run_page(tmp_path / "report.html", RunPage(title="x", rows=[PredictionRow("a", (), "", ("r",), None, "t")]))
    html = (tmp_path / "report.html").read_text()
    assert ">Predictions<" in html
    assert "Before" not in html


def test_a_thousand_noisy_images_stay_under_30_mb(tmp_path: Path) -> None:
    """25 images of noise, each in 40 rows: the limit counts every use of an image."""
    noise = np.random.default_rng(0)
    for index in range(25):
        pixels = noise.integers(0, 255, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.jpg", quality=60)
    rows = [PredictionRow(str(row), (tmp_path / f"{row % 25}.jpg",), "p", ("r",), "b", "t") for row in range(1000)]
    write_run_page(tmp_path / "report.html", RunPage(title="many", rows=rows))
    html = (tmp_path / "report.html").read_bytes()
    assert len(html) < 30_000_000
    assert html.count(b"<article") == 1000
    assert b"988 more" in html


def test_settings_are_flattened_as_typed() -> None:
    nested = {"a": {"b": {"c": None}, "d": True}, "e": [1, "x"], "f": {}}
    assert flatten_settings(nested) == [("a.b.c", "null"), ("a.d", "true"), ("e", "[1, x]"), ("f", "{}")]


def test_cut_answers_and_trained_images_are_marked(tmp_path: Path) -> None:
    rows = [
        PredictionRow(name, (), "", ("r",), "before", "after", base_is_cut=is_cut, tuned_is_cut=not is_cut)
        for name, is_cut in (("a", True), ("b", False))
    ]
    write_run_page(tmp_path / "p.html", RunPage(title="x", rows=rows, trained_on=[False, True]))
    first, second = (tmp_path / "p.html").read_text(encoding="utf-8").split("<article")[1:]
    assert ">before …<" in first
    assert ">after<" in first
    assert ">after …<" in second
    assert ["trained on" in card for card in (first, second)] == [False, True]


def test_only_better_answers_are_green(tmp_path: Path) -> None:
    rows = [PredictionRow(str(i), (), "", ("goal",), base, tuned) for i, (base, tuned) in enumerate(
        [("x", "goal"), ("goal", "goal."), ("x", "nearer"), ("x", "farther"), ("goal", "x"), ("x", "x"), ("x", "y")]
    )]  # fmt: skip
    write_run_page(tmp_path / "p.html", RunPage(title="x", rows=rows, gains=[1, 0, 0.5, -0.5, -1, 0, 0.02]))
    html = (tmp_path / "p.html").read_text()
    cards = html.split("<article")[1:]
    assert ['"after better"' in card for card in cards] == [True, False, True, False, False, False, False]
    assert ["matches the reference" in card for card in cards] == [True, *[False] * 6]
    scores = [
        ScoreRow("a", "1", "2", change="better"),
        ScoreRow("b", "1", "3", difference="+2"),
        ScoreRow("c", "1", "1"),
    ]
    write_run_page(tmp_path / "p.html", RunPage(title="x", scores=scores))
    html = (tmp_path / "p.html").read_text()
    assert html.count('<td role="cell" class="better">') == 2  # of row a: after, and the difference
    assert html.index(">b<") < html.index("1 score that is the same as before") < html.index(">c<")


def test_cards_name_their_file_and_row(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "kite.png")
    row = PredictionRow("identity_27", (tmp_path / "kite.png",), "What?", ("a",), "b", "c", place="row 27")
    rows = [row, replace(row, images=(), place="", id="own")]
    write_run_page(tmp_path / "p.html", RunPage(title="x", rows=rows))
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", html)
    assert "kite.png · row 27" in text
    assert "identity_27" not in text
    assert "own" in text
    assert html.count("What?") == 1  # the prompt of all rows
    write_run_page(tmp_path / "p.html", RunPage(title="x", rows=[row, replace(row, prompt="Where?")]))
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert (html.count("What?"), html.count("Where?"), "Prompt:" in html) == (1, 1, False)


@pytest.mark.parametrize(
    ("references", "answer", "marked"),
    [
        (("a small red car",), "a big red car", ["big"]),
        (("a small red car", "a big red kite"), "a big red boat", ["boat"]),
        (("a small red car",), "a small red car", []),
        (("a small red car",), "nothing in common here", []),  # all words differ: marks would say nothing
        (("a red car",), "a red car and a tree", ["and a tree"]),
        ((), "a car", []),
        (("a",), "", []),
    ],
)
def test_words_that_differ_from_the_reference_are_marked(
    references: tuple[str, ...], answer: str, marked: list[str]
) -> None:
    words = mark_words(PredictionRow("a", (), "", references, "base", answer))
    assert [text for text, differs in words if differs] == marked
    assert "".join(text for text, _ in words) == answer


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    write_run_page(tmp_path / "report.html", build_page(tmp_path))
    return tmp_path / "report.html"


def test_page_fits_every_window_and_makes_no_request(
    page_path: Path, is_fit_to_look_at: Callable[[Path], None]
) -> None:
    is_fit_to_look_at(page_path)


def test_the_checks_of_a_page_find_faults(
    page_path: Path, tmp_path: Path, is_fit_to_look_at: Callable[[Path], None]
) -> None:
    """The negative control of the test before."""
    html = page_path.read_text(encoding="utf-8")
    for good, bad in (
        ("--soft: light-dark(#676258", "--soft: light-dark(#a7a298"),
        ('<th scope="row">', "<th>"),
        ('class="timeline" tabindex="0"', 'class="timeline" style="width: 9rem"'),
        ("<h3", "<h4"),
        ("</main>", '<p style="width: 90rem">wide</p></main>'),
        ("</main>", '<img src="https://example.org/a.png"></main>'),
    ):
        assert good in html
        (tmp_path / "bad.html").write_text(html.replace(good, bad), encoding="utf-8")
        with pytest.raises(Exception, match=r"assert|cannot be decoded"):
            is_fit_to_look_at(tmp_path / "bad.html")


def test_the_keyboard_reaches_links_buttons_strips_and_charts(opened: Callable[..., Any], page_path: Path) -> None:
    with opened(page_path) as page:
        reached = []
        for _ in range(60):
            page.view.keyboard.press("Tab")
            reached.append(page.view.evaluate(
                "(e => (e.className || e.tagName) + (e.closest('.chart')?.dataset.chart ?? ''))(document.activeElement)"
            ))  # fmt: skip
        assert {"A", "button", "copy", "timeline", "plot0", "plot1", "SUMMARY"} <= set(reached)
        page.view.set_viewport_size({"width": 390, "height": 800})
        strip = page.view.locator(".timeline").first
        strip.focus()
        for _ in range(3):
            page.view.keyboard.press("ArrowRight")
        wait_until(page.view, "document.querySelector('.timeline').scrollLeft > 0")


def test_the_page_works_without_a_script(opened: Callable[..., Any], page_path: Path) -> None:
    with opened(page_path, java_script_enabled=False) as page:
        assert "It worked." in str(page.view.inner_text("main, header"))
        assert page.view.locator("button:visible").count() == 0  # a button would do nothing
        assert page.view.locator(".plot path").count() > 4
        page.view.locator("summary", has_text="The curves as a table").click()
        assert page.view.locator("th", has_text="training loss").is_visible()
        assert page.view.title() == "COCO captions · report of a run · lorgnette"


def test_the_keyboard_switches_dark_and_light(opened: Callable[..., Any], page_path: Path) -> None:
    with opened(page_path, color_scheme="light") as light, opened(page_path, color_scheme="dark") as dark:
        assert light.paper() != dark.paper()
        light.view.keyboard.press("Tab")
        assert light.view.evaluate("document.activeElement.id") == "theme"
        light.view.keyboard.press("Enter")
        assert light.paper() == dark.paper()
        light.view.reload()
        assert light.paper() == dark.paper()  # remembered
        light.view.focus("#theme")
        light.view.keyboard.press("Space")
        assert light.paper() != dark.paper()


def test_pointer_and_arrow_keys_show_values(opened: Callable[..., Any], page_path: Path) -> None:
    with opened(page_path) as page:
        plot, readout = page.view.locator(".plot").first, page.view.locator(".readout").first
        plot.focus()
        page.view.keyboard.press("End")
        assert readout.text_content() == "step 62 · training loss 0.06452 · eval loss 0.5 (step 20)"
        page.view.keyboard.press("Home")
        page.view.keyboard.press("ArrowRight")
        assert str(readout.text_content()).startswith("step 2 · training loss 2 ·")
        page.view.keyboard.press("Escape")
        assert readout.text_content() == ""
        plot.hover()
        expect(readout).to_contain_text("step 3")  # the middle of 1 … 62
        assert page.complaints == []


def test_script_and_page_write_numbers_alike(opened: Callable[..., Any], page_path: Path) -> None:
    values = [0, 1, -3, 1240, 1234567, 123456.7, 3.9, 0.06452, 0.00197, 1e-4, -2.5e-7, 1.5e6, 0.99996, 1234.6]
    with opened(page_path) as page:
        assert page.view.evaluate("values => values.map(formatNumber)", values) == list(map(format_number, values))


def test_curves_are_copied_and_downloaded_as_csv(opened: Callable[..., Any], page_path: Path) -> None:
    with opened(page_path, permissions=["clipboard-read", "clipboard-write"], accept_downloads=True) as page:
        page.view.locator("summary", has_text="The curves as a table").click()
        with page.view.expect_download() as download:
            page.view.locator("[download='curves.csv']").click()
        text = Path(download.value.path()).read_text(encoding="utf-8")
        assert download.value.suggested_filename == "curves.csv"
        assert text.splitlines()[:2] == ["step,training loss,eval loss,lr", "0,,,0.0001"]
        page.view.evaluate("Object.defineProperty(navigator.clipboard, 'writeText', {value: t => (window.copied = t)})")
        page.view.locator("details[open] button", has_text="Copy CSV").click()
        wait_until(page.view, "window.copied")
        assert page.view.evaluate("copied") == text
        assert page.complaints == []


def test_print_is_light_with_details_open(opened: Callable[..., Any], page_path: Path) -> None:
    with opened(page_path, color_scheme="dark") as page:
        page.view.emulate_media(media="print")
        assert page.paper() == "rgb(255, 255, 255)"
        page.view.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.view.locator("details.settings tr").first.is_visible()
        assert not page.view.locator("details.curve-table").is_visible()  # it may have hundreds of rows
        assert not page.view.locator("#theme").is_visible()
