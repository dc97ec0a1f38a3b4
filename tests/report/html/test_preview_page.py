import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import split_into_spans
from lorgnette.report.draw_boxes import Box
from lorgnette.report.html.preview_page import write_preview_page
from lorgnette.report.preview import PreviewImage, PreviewRow
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Encoded, Example


@pytest.fixture
def encoded(conversations: list[Example]) -> list[Encoded]:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))
    return [processor.encode(example) for example in conversations]


@pytest.fixture
def page(tmp_path: Path, encoded: list[Encoded]) -> Path:
    tokenizer = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings()).tokenizer
    image = PreviewImage("<a>.png", (640, 480), PIL.Image.radial_gradient("L").convert("RGB").resize((280, 210)), 75)
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
