import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import split_into_spans
from lorgnette.report.draw_boxes import Box
from lorgnette.report.html.preview_page import write_preview_page
from lorgnette.report.preview import PreviewImage, PreviewRow
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Encoded, Example


@pytest.fixture
def encoded(conversations: list[Example]) -> list[Encoded]:
    encoder = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))
    return [encoder.encode(example) for example in conversations]


@pytest.fixture
def written(tmp_path: Path, encoded: list[Encoded]) -> Path:
    tokenizer = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings()).tokenizer
    picture = PreviewImage("<a>.png", (640, 480), draw_scene(sample_scene(Random(1))).resize((280, 210)), 75)
    rows = [
        PreviewRow(f"row {number}", images=[picture] * (number % 3), spans=split_into_spans(each, tokenizer))
        for number, each in enumerate(encoded)
    ]
    rows.append(PreviewRow("row 9", "picture is missing · " + "/long" * 80))
    rows.append(PreviewRow("row 10", images=[picture], boxes=[Box((100, 100, 600, 600), "a ball")]))
    write_preview_page(tmp_path / "preview.html", "a.json", rows)
    return tmp_path / "preview.html"


def test_the_colours_are_the_labels(written: Path, encoded: list[Encoded], opened: Callable[..., Any]) -> None:
    """As the browser paints them."""
    with opened(written) as page:
        painted = page.view.evaluate(
            """[...document.querySelectorAll('.row .tokens')].map(row => [...row.children].map(token =>
               [Number(token.dataset.n), getComputedStyle(token).textDecorationLine, getComputedStyle(token).color]))"""
        )
    assert len(painted) == len(encoded)
    assert len({colour for row in painted for _, line, colour in row if line == "underline"}) == 1
    for row, example in zip(painted, encoded, strict=True):
        mask = list(chain.from_iterable([line == "underline"] * count for count, line, _ in row))
        assert mask == (example.labels != IGNORE_INDEX).tolist()


def test_the_colours_are_the_labels_in_the_file_too(written: Path, encoded: list[Encoded]) -> None:
    spans = re.findall(r'<span class="(t )?\w+" data-n="(\d+)">', written.read_text(encoding="utf-8"))
    mask = list(chain.from_iterable([bool(trained)] * int(count) for trained, count in spans))
    assert mask == [trained for each in encoded for trained in (each.labels != IGNORE_INDEX).tolist()]


def test_what_is_on_it(written: Path, encoded: list[Encoded]) -> None:
    html = written.read_text(encoding="utf-8")
    trained, total = sum(each.num_labels for each in encoded), sum(len(each.input_ids) for each in encoded)
    assert f"loss is taken on {trained} of {total} tokens" in html
    assert "&lt;a&gt;.png, 640×480 → 280×210 pixels, 75 tokens" in html
    assert "a ball (100,100),(600,600)" in html
    assert "picture is missing" in html
    assert "新" in html


def test_a_browser_shows_it_whole(written: Path, is_fit_to_look_at: Callable[[Path], None]) -> None:
    is_fit_to_look_at(written)
