"""Colors, brackets and classes show which tokens have loss."""

import io
import re
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from lorgnette.config import ProcessorSettings
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import TokenSpan, split_into_spans
from lorgnette.report.preview import (
    TRAINED_STYLES,
    PreviewBox,
    PreviewImage,
    PreviewRow,
    bracket_spans,
    color_spans,
    compute_scale,
    format_span,
    print_rows,
    render_half_blocks,
    summarize_rows,
    write_preview_page,
)  # fmt: skip
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Encoded, Example, PixelBox

SPANS = [
    TokenSpan("<|im_start|>", 1, False, "control"),
    TokenSpan("<|image_pad|>", 100, False, "image"),
    TokenSpan("q\n", 1, False, "text"),
    TokenSpan("a [red]", 1, True, "text"),
    TokenSpan(" 新", 3, True, "text"),
    TokenSpan("<|im_end|>", 1, True, "control"),
    TokenSpan("\n", 1, False, "text"),
]
IMAGE = PreviewImage("a.jpg", (640, 480), Image.new("RGB", (280, 140), "teal"), 50)


def read_mask(spans: Sequence[TokenSpan]) -> list[bool]:
    """The colors, token by token."""
    colored = color_spans(spans).spans
    assert len(colored) == len(spans)
    return list(
        chain.from_iterable(
            [color.style in TRAINED_STYLES] * span.num_tokens for color, span in zip(colored, spans, strict=True)
        )
    )


def test_colors_show_the_labels() -> None:
    assert read_mask(SPANS) == [False] * 102 + [True] * 5 + [False]
    flipped = [TokenSpan(span.text, span.num_tokens, not span.is_trained, span.kind) for span in SPANS]
    assert read_mask(flipped) == [True] * 102 + [False] * 5 + [True]


def test_neighboring_spans_differ_in_style() -> None:
    styles = [span.style for span in color_spans(SPANS).spans]
    assert all(a != b for a, b in pairwise(styles))


def test_images_are_shortened_and_newlines_visible() -> None:
    assert [format_span(span) for span in SPANS[1:3]] == ["<|image_pad|>×100", "q↵\n"]


def test_brackets_show_the_labels() -> None:
    assert bracket_spans(SPANS).plain == "<|im_start|><|image_pad|>×100q↵\n⟦a [red] 新<|im_end|>⟧↵\n"
    assert bracket_spans(SPANS[3:4]).plain == "⟦a [red]⟧"


def test_half_blocks() -> None:
    image = Image.new("RGB", (40, 40), "red")
    image.paste("blue", (0, 20, 40, 40))
    text = render_half_blocks(image, 2)
    assert text.plain == "▀▀"
    assert {(span.style.color.name, span.style.bgcolor.name) for span in text.spans} == {("#ff0000", "#0000ff")}  # type: ignore[union-attr]
    assert len(render_half_blocks(image, 30).plain.splitlines()) == 15


@pytest.mark.parametrize("is_plain", [True, False])
def test_rows_on_a_console(is_plain: bool) -> None:
    rows = [
        PreviewRow(
            "row 2",
            images=[IMAGE],
            boxes=[PreviewBox(PixelBox((0, 0, 320, 500), "it"), "(0,0),(500,1042)")],
            spans=SPANS,
        ),
        PreviewRow("row 3", "image not found [a]; get it"),
    ]
    file = io.StringIO()
    color_system: Any = None if is_plain else "truecolor"
    print_rows(rows, Console(file=file, force_terminal=not is_plain, color_system=color_system, width=80))
    printed = file.getvalue()
    assert "108 tokens, 5 trained" in printed
    assert "a.jpg, 640×480 → 280×140 pixels, 50 tokens" in printed
    assert (
        "box 1: it (0,0),(320,500) in pixels of the file, outside the image (640×480 pixels); the model gets "
        "(0,0),(500,1042)"
    ) in printed
    assert "image not found [a]; get it" in printed
    assert ("▀" in printed) != is_plain
    assert ("⟦" in printed) == is_plain


def test_no_color_means_brackets_and_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal with colors, where NO_COLOR asks for none."""
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    row = PreviewRow("row 2", images=[IMAGE], spans=SPANS)
    print_rows([row], Console(file=file, force_terminal=True, color_system="truecolor", width=80))
    assert "⟦a [red] 新<|im_end|>⟧" in file.getvalue()
    assert "tokens in ⟦ ⟧ have loss" in file.getvalue()
    assert "▀" not in file.getvalue()
    assert "a.jpg, 640×480 → 280×140 pixels, 50 tokens" in file.getvalue()


@pytest.mark.parametrize(
    ("size", "scale"), [((28, 56), 5), ((112, 112), 2), ((280, 140), 1), ((480, 300), 1), ((644, 420), 0)]
)
def test_images_are_enlarged_by_whole_numbers(size: tuple[int, int], scale: int) -> None:
    assert compute_scale(size) == scale


@pytest.fixture
def encoded(conversations: list[Example]) -> list[Encoded]:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))
    return [processor.encode(example) for example in conversations]


@pytest.fixture
def page(tmp_path: Path, encoded: list[Encoded]) -> Path:
    tokenizer = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings()).tokenizer
    image = PreviewImage("<a>.png", (640, 480), Image.radial_gradient("L").convert("RGB").resize((280, 210)), 75)
    rows = [
        PreviewRow(f"row {number}", images=[image] * (number % 3), spans=split_into_spans(example, tokenizer))
        for number, example in enumerate(encoded)
    ]
    rows.append(PreviewRow("row 9", "image not found · " + "/long" * 80))
    rows.append(PreviewRow("row 10", images=[image], boxes=[PreviewBox(PixelBox((10, 10, 60, 60), "a ball"), "[10]")]))
    basis, steps = [("model", "demo"), ("prompt", "'COCO Yes:' (the default)")], [("Train", "lorgnette train a.json")]
    write_preview_page(tmp_path / "preview.html", "a.json", rows, basis, steps)
    return tmp_path / "preview.html"


def test_colors_show_the_labels_in_a_browser(page: Path, encoded: list[Encoded], opened: Callable[..., Any]) -> None:
    with opened(page) as browser_page:
        styles = browser_page.view.evaluate(
            """[...document.querySelectorAll('.row .tokens')].map(row => [...row.children].map(token =>
               [Number(token.dataset.n), getComputedStyle(token).textDecorationLine, getComputedStyle(token).color]))"""
        )
    assert len(styles) == len(encoded)
    assert len({color for row in styles for _, line, color in row if line == "underline"}) == 1
    for row, example in zip(styles, encoded, strict=True):
        is_trained = list(chain.from_iterable([line == "underline"] * count for count, line, _ in row))
        assert is_trained == (example.labels != IGNORE_INDEX).tolist()


def test_classes_show_the_labels(page: Path, encoded: list[Encoded]) -> None:
    spans = re.findall(r'<span class="(t )?\w+" data-n="(\d+)">', page.read_text(encoding="utf-8"))
    is_trained = list(chain.from_iterable([bool(trained)] * int(count) for trained, count in spans))
    assert is_trained == [label != IGNORE_INDEX for example in encoded for label in example.labels]


def test_contents(page: Path, encoded: list[Encoded]) -> None:
    html = page.read_text(encoding="utf-8")
    num_trained, num_tokens = sum(e.num_labels for e in encoded), sum(len(e.input_ids) for e in encoded)
    num_rows = len(encoded) + 2
    assert f"{num_trained} of {num_tokens} tokens are trained; 1 of {num_rows} rows cannot be used." in html
    assert "&lt;a&gt;.png</span>" in html
    assert "640×480 pixels in the file; the model gets 280×210, which are 75 tokens. Shown pixel for pixel." in html
    assert "<title>a.json · preview of a data set · lorgnette</title>" in html
    assert "<dt>Prompt</dt>" in html
    assert "<span>a.json</span></code>" in html
    assert "a ball (10,10),(60,60) in pixels of the file; the model gets [10]" in html
    assert "image not found" in html
    assert "新" in html


def test_in_a_browser(page: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(page)


def test_summary_counts_rows_and_tokens() -> None:
    good, bad = PreviewRow("row 2", spans=SPANS), PreviewRow("row 3", "no image")
    assert summarize_rows([good]) == "1 row as the model gets them: 5 of 108 tokens are trained."
    assert summarize_rows([good, bad]) == (
        "Rows as the model gets them: 5 of 108 tokens are trained; 1 of 2 rows cannot be used."
    )
    assert summarize_rows([bad, bad]) == "None of 2 rows can be used."


@pytest.mark.parametrize(("size", "text", "width"), [((56, 28), "enlarged 5 times", 280), ((960, 480), "smaller", 480)])
def test_images_have_the_said_scale(
    size: tuple[int, int], text: str, width: int, tmp_path: Path, opened: Callable[..., Any]
) -> None:
    image = PreviewImage("a.png", (640, 480), Image.new("RGB", size, "teal"), 8)
    write_preview_page(tmp_path / "p.html", "a.json", [PreviewRow("row 2", images=[image], spans=SPANS)])
    with opened(tmp_path / "p.html", viewport={"width": 1280, "height": 900}) as page:
        assert f"Shown {text}." in str(page.view.locator("figure").text_content())
        page.view.locator("figure img").evaluate("image => image.decode()")
        assert page.view.locator("figure img").bounding_box()["width"] == width
        assert page.complaints == []
