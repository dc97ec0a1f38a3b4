"""Boxes of answers: pixels of the file for each convention, and the mean probability of the tokens of each."""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.data.box_notation import TextBox
from lorgnette.inference.answer_boxes import locate_references, score_boxes
from lorgnette.inference.sampling import build_prediction
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.processing.processor import Processor
from lorgnette.types import Box, Example, Image, PixelBox, Turn

MARKED = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,250),(500,750)<|box_end|>"
JSON = '[{"bbox_2d": [28, 70, 140, 210], "label": "cat"}]'
THOUSANDTHS = '[{"bbox_2d": [100, 250, 500, 750], "label": "cat"}]'


def encode(processor: Processor, text: str) -> list[int]:
    """The tokens of an answer, control tokens too."""
    pieces, names = [text], processor.tokenizer.control_tokens
    for name in names:
        pieces = [part for piece in pieces for part in ([piece] if piece in names else split(piece, name))]
    return [
        id_ for piece in pieces for id_ in ([names[piece]] if piece in names else processor.tokenizer.encode(piece))
    ]


def split(text: str, name: str) -> list[str]:
    parts = [part for piece in text.split(name) for part in (name, piece)][1:]
    return [part for part in parts if part]


def ask(path: Path, *boxes: Box) -> Example:
    turns = Turn("user", (Image(path), "where?")), Turn("assistant", boxes or ("here",))
    return Example("a", turns, path, 1)


@pytest.fixture(scope="module")
def open_processor(tiny_family: Callable[[str], Path]) -> Callable[[str], Processor]:
    """open_processor(model_type) → a processor for images of 280×280 pixels."""
    settings = ProcessorSettings(image_size=(280, 280))
    return cache(lambda model_type: Processor.from_folder(tiny_family(model_type), settings))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (400, 800)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


CONVENTIONS = pytest.mark.parametrize(
    ("model_type", "text"), [("qwen2_vl", MARKED), ("qwen2_5_vl", JSON), ("qwen3_vl", THOUSANDTHS)]
)


@CONVENTIONS
def test_boxes_are_in_pixels_of_the_file(
    open_processor: Callable[[str], Processor], photo: Path, model_type: str, text: str
) -> None:
    processor = open_processor(model_type)
    end = processor.tokenizer.control_tokens["<|im_end|>"]
    ids = encode(processor, text)
    prediction = build_prediction(processor, ask(photo), [*ids, end, end], None)
    assert prediction.text == text
    assert prediction.boxes == (PixelBox((40.0, 200.0, 200.0, 600.0), "cat"),)
    scored = build_prediction(processor, ask(photo), [*ids, end], None, [0.5] * len(ids) + [0.1])
    assert scored.boxes == (PixelBox((40.0, 200.0, 200.0, 600.0), "cat", score=0.5),)


@pytest.mark.parametrize("text", ["two: (1,2),(3,4) and [5, 6, 7, 8] é", "新 (1,2),(3,4) [5, 6, 7, 8]"])
def test_a_score_is_the_mean_probability_of_a_boxs_tokens(
    open_processor: Callable[[str], Processor], photo: Path, text: str
) -> None:
    processor = open_processor("qwen2_vl")
    ids = processor.tokenizer.encode(text)
    pieces = processor.tokenizer.decode_each(ids)
    assert "".join(pieces) == text
    probabilities = [1 / (1 + i) for i in range(len(ids))]
    boxes = build_prediction(processor, ask(photo), ids, None, probabilities).boxes
    starts = [sum(map(len, pieces[:i])) for i in range(len(pieces))]
    for box, written in zip(boxes, ("(1,2),(3,4)", "[5, 6, 7, 8]"), strict=True):
        first, last = text.index(written), text.index(written) + len(written)
        own = [
            p for p, start, piece in zip(probabilities, starts, pieces, strict=True)
            if start < last and start + len(piece) > first
        ]  # fmt: skip
        assert box.score == pytest.approx(sum(own) / len(own), abs=1e-6)
    assert boxes[0].score != boxes[1].score
    # Without boxes that are expected, brackets are text.
    assert build_prediction(processor, ask(photo), ids, None).boxes == ()


def test_the_image_of_a_box_is_known_or_there_is_no_box(
    open_processor: Callable[[str], Processor], photo: Path, tmp_path: Path
) -> None:
    processor = open_processor("qwen2_vl")
    PIL.Image.new("RGB", (100, 100)).save(tmp_path / "small.png")
    PIL.Image.new("RGB", (400, 800)).save(tmp_path / "same.png")

    def list_images(name: str, *boxes: Box) -> list[int]:
        example = ask(photo, *boxes)
        question = Turn("user", (Image(photo), Image(tmp_path / name), "where?"))
        example = Example("a", (question, *example.turns[1:]), photo, 1)
        return [box.image for box in build_prediction(processor, example, encode(processor, MARKED), None).boxes]

    assert list_images("small.png") == []
    assert list_images("same.png") == [0]
    assert list_images("small.png", Box((1, 2, 3, 4), image=1)) == [1]


def test_many_boxes_take_no_time() -> None:
    found = [TextBox(Box((1, 2, 3, 4)), 12 * i, 12 * i + 11) for i in range(10_000)]
    start = time.perf_counter()
    scores = score_boxes(["(1,2),(3,4) "] * 10_000, [0.25] * 10_000, found)
    assert scores == [0.25] * 10_000
    assert time.perf_counter() - start < 1


@CONVENTIONS
def test_references_that_are_texts_are_located_by_the_model(
    open_processor: Callable[[str], Processor], photo: Path, model_type: str, text: str
) -> None:
    processor = open_processor(model_type)
    turns = Turn("user", (Image(photo), "where?")), Turn("assistant", (text,))
    [prompt] = locate_references(group_by_prompt([Example("a", turns, photo, 1)]), processor)
    assert prompt.reference_boxes == ((PixelBox((40.0, 200.0, 200.0, 600.0), "cat"),),)
    [plain] = locate_references(group_by_prompt([ask(photo)]), processor)
    assert plain.reference_boxes == ()
    known = Box((1, 2, 3, 4), "dog")
    [kept] = locate_references(group_by_prompt([ask(photo, known)]), processor)
    assert kept.reference_boxes == ((PixelBox((1.0, 2.0, 3.0, 4.0), "dog"),),)
