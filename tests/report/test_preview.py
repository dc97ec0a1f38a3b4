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
from lorgnette.report.draw_boxes import Box
from lorgnette.report.preview import (
    TRAINED_STYLES,
    PreviewImage,
    PreviewRow,
    bracket_spans,
    color_spans,
    format_span,
    print_rows,
    render_half_blocks,
    write_preview_page,
)  # fmt: skip
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Encoded, Example

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
        PreviewRow("row 2", images=[IMAGE], boxes=[Box((0, 0, 500, 500), "it")], spans=SPANS),
        PreviewRow("row 3", "image not found [a]; get it"),
    ]
    file = io.StringIO()
    color_system: Any = None if is_plain else "truecolor"
    print_rows(rows, Console(file=file, force_terminal=not is_plain, color_system=color_system, width=80))
    printed = file.getvalue()
    assert "108 tokens, 5 trained" in printed
    assert "a.jpg, 640×480 → 280×140 pixels, 50 tokens" in printed
    assert "box 1: it (0,0),(500,500)" in printed
    assert "image not found [a]; get it" in printed
    assert ("▀" in printed) != is_plain
    assert ("⟦" in printed) == is_plain


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
    rows.append(PreviewRow("row 10", images=[image], boxes=[Box((100, 100, 600, 600), "a ball")]))
    write_preview_page(tmp_path / "preview.html", "a.json", rows)
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
    assert f"{num_trained} of {num_tokens} tokens with loss" in html
    assert "&lt;a&gt;.png, 640×480 → 280×210 pixels, 75 tokens" in html
    assert "a ball (100,100),(600,600)" in html
    assert "image not found" in html
    assert "新" in html


def test_in_a_browser(page: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(page)
