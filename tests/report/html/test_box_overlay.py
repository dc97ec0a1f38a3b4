"""Boxes over images, at the right place however the browser fits the image, and apart by whose they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.report import compute_report
from lorgnette.report.html.box_overlay import MAX_DRAWN, BoxLayer, build_key, build_overlays, list_reference_layer
from lorgnette.report.html.comparison import ComparisonPage, write_comparison_page
from lorgnette.report.html.page import RunPage, write_run_page
from lorgnette.types import Example, Image, PixelBox, PredictionRow, Turn

OWN, OTHER, REFERENCE = (PixelBox((100.0 * i, 200.0, 100.0 * i + 50, 600.0), "a <b> cat", score=0.5) for i in (1, 2, 3))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Higher than a page shows an image: it has empty strips beside it."""
    PIL.Image.new("RGB", (500, 2000), "teal").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_boxes_are_drawn_on_their_image(photo: Path, tmp_path: Path) -> None:
    second = PixelBox((1.0, 2.0), image=1)
    layers = [BoxLayer("after", "boxes1", [OWN, second]), list_reference_layer([[REFERENCE], []])]
    first, other, gone = build_overlays([photo, photo, tmp_path / "gone.png"], layers)
    assert first is not None
    assert (first.width, first.height) == (500, 2000)
    assert [(style, box) for style, box, _ in first.shapes] == [("boxes1", OWN), ("boxes-reference", REFERENCE)]
    assert first.shapes[0][2] == "after: a <b> cat (100,200),(150,600) 0.50"
    assert other is not None
    assert [box for _, box, _ in other.shapes] == [second]
    assert gone is None
    assert build_overlays([photo], [BoxLayer("after", "boxes1", [])]) == [None]
    assert build_overlays([tmp_path / "gone.png"], layers) == [None]


def test_ten_thousand_boxes_do_not_fill_the_page(photo: Path) -> None:
    layers = [BoxLayer("after", "boxes1", [OWN] * 10_000), BoxLayer("before", "boxes2", [])]
    [overlay] = build_overlays([photo], layers)
    assert overlay is not None
    assert len(overlay.shapes) == MAX_DRAWN
    assert build_key(layers) == [("boxes1", "after (100 of 10,000 boxes)")]


@pytest.fixture
def run_page(photo: Path, tmp_path: Path) -> Path:
    row = PredictionRow(
        "a", (photo,), "where?", ("there",), "here", "there",
        base_boxes=(OTHER,), tuned_boxes=(OWN,), reference_boxes=((REFERENCE,),),
    )  # fmt: skip
    plain = PredictionRow("b", (photo,), "where?", ("there",), "here", "there")
    write_run_page(tmp_path / "run.html", RunPage("boxes", rows=[row, plain]))
    return tmp_path / "run.html"


@pytest.fixture
def comparison_page(photo: Path, tmp_path: Path) -> Path:
    prompt = EvalPrompt(Example("a", (Turn("user", (Image(photo),)),), photo, 1), ("there",), ((REFERENCE,),))
    answers, boxes = [["here"], ["there"]], [[(OTHER,)], [(OWN,)]]
    report = compute_report(["box-IoU"], [prompt], answers, boxes)
    write_comparison_page(tmp_path / "compare.html", ComparisonPage(("x", "y"), [prompt], answers, report, boxes))
    return tmp_path / "compare.html"


@pytest.mark.parametrize("name", ["run_page", "comparison_page"])
def test_a_browser_draws_them_at_their_place(
    name: str, request: pytest.FixtureRequest, opened: Callable[..., Any]
) -> None:
    path = request.getfixturevalue(name)
    with opened(path, viewport={"width": 1200, "height": 900}) as page:
        page.view.locator(".boxed").scroll_into_view_if_needed()
        page.view.locator(".boxed img").evaluate("image => image.decode()")
        image = page.view.locator(".boxed img").bounding_box()
        drawn = page.view.evaluate("""() => [...document.querySelectorAll('.boxed g')].map(group => {
            const {x, y, width, height} = group.querySelector('.line').getBoundingClientRect()
            return [getComputedStyle(group.querySelector('.line')).stroke, x, y, width, height]
        })""")
        assert page.view.locator(".box-key > span").count() == 3
    # The image of 500×2000 is in the middle of its place.
    scale = min(image["width"] / 500, image["height"] / 2000)
    left, top = image["x"] + (image["width"] - 500 * scale) / 2, image["y"] + (image["height"] - 2000 * scale) / 2
    assert image["width"] > 1.1 * 500 * scale
    for (_, *place), box in zip(drawn, (OTHER, OWN, REFERENCE), strict=True):
        x1, y1, x2, y2 = box.corners
        expected = [left + x1 * scale, top + y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale]
        assert place == pytest.approx(expected, abs=1)
    assert len({color for color, *_ in drawn}) == 3
    assert "a &lt;b&gt; cat" in path.read_text(encoding="utf-8")
