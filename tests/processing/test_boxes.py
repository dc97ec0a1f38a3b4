"""Boxes: round trips through the three conventions, the notation of each, and their tokens."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.boxes import BoxConvention, ImageSize, parse_boxes, write_boxes
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.processor import Processor
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Box, Example, Image, Turn

TOKENS = BoxConvention("thousandths", "tokens")
PIXELS = BoxConvention("resized pixels", "json")
JSON = BoxConvention("thousandths", "json")
CONVENTIONS = [TOKENS, PIXELS, JSON]
SIZE = ImageSize(1000, 500, 560, 280)


def build_example(*answer: Box | str, question: tuple[Box | str, ...] = ("Where?",)) -> Example:
    turns = Turn("user", (Image(Path("a.png")), *question)), Turn("assistant", answer)
    return Example("1", turns, Path("a.jsonl"), 1)


@pytest.mark.parametrize(
    ("model_type", "convention"),
    [
        ("qwen2_vl", TOKENS), ("qwen2_5_vl", PIXELS), ("qwen3_vl", JSON), ("qwen3_vl_moe", JSON), ("qwen3_5", JSON),
        ("qwen3_5_moe", JSON),
    ],
)  # fmt: skip
def test_the_convention_is_the_familys(model_type: str, convention: BoxConvention) -> None:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings())
    assert replace(processor, family=FAMILIES[model_type]).box_convention == convention


def list_sizes() -> list[ImageSize]:
    """280×280; 4032×3024 and an odd shape in native size, with Qwen2-VL's and Qwen3-VL's patches."""
    sizes = [ImageSize(280, 280, 280, 280)]
    for patch_size, settings in (
        (14, ProcessorSettings(image_size=(280, 280))), (16, ProcessorSettings(image_size=(280, 280))),
        (14, ProcessorSettings(image_size=None, image_tokens=(4, 16384))),
        (14, ProcessorSettings(image_size=None, image_tokens=(4, 1280))),
        (16, ProcessorSettings(image_size=None, image_tokens=(64, 16384))),
    ):  # fmt: skip
        processor = replace(ImageProcessor.from_folder(BUILT_IN_MODEL, settings), patch_size=patch_size)
        limits = [count * processor.token_side**2 for count in settings.image_tokens]
        processor = replace(processor, min_pixels=limits[0], max_pixels=limits[1])
        for width, height in ((4032, 3024), (801, 113)):
            resized_height, resized_width = processor.compute_size(width, height)
            sizes.append(ImageSize(width, height, resized_width, resized_height))
    return sizes


def draw_boxes(size: ImageSize) -> list[Box]:
    """Boxes on the edges, on half pixels and anywhere."""
    rng = random.Random(1)
    boxes = [Box((0, 0, size.width, size.height)), Box((0.5, 0.5, size.width - 0.5, size.height - 0.5))]
    for _ in range(200):
        (x1, x2), (y1, y2) = (sorted(rng.uniform(0, side) for _ in range(2)) for side in size[:2])
        boxes.append(Box((x1, y1, x2, y2), 'a "b", {c} [1, 2, 3, 4]'))
    return boxes


def measure_errors(convention: BoxConvention, size: ImageSize, wrong: ImageSize | None = None) -> np.ndarray:
    """|box → text → box| in steps of the convention, [boxes, 4]. wrong: the size for which the text is written."""
    boxes = draw_boxes(size)
    example = write_boxes(build_example(*boxes), convention, [wrong or size])
    found = parse_boxes(example.reference, convention, size)
    assert [text_box.box.label for text_box in found] == [box.label for box in boxes]
    counts = (1000, 1000) if convention.scale == "thousandths" else size[2:]
    steps = np.array([size.width / counts[0], size.height / counts[1]] * 2)
    corners = np.array([[box.corners, text_box.box.corners] for box, text_box in zip(boxes, found, strict=True)])
    return np.abs(corners[:, 0] - corners[:, 1]) / steps


@pytest.mark.parametrize("size", list_sizes(), ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: f"{c.scale}, {c.format}")
def test_a_round_trip_is_exact_to_half_a_step(convention: BoxConvention, size: ImageSize) -> None:
    errors = measure_errors(convention, size)
    assert 0.4 < errors.max() <= 0.5 + 1e-9


def test_numbers_before_the_resize_are_wrong() -> None:
    """Negative control: with the size of the file in place of the resized one, boxes are far off."""
    size = ImageSize(4032, 3024, 1148, 868)
    assert measure_errors(PIXELS, size, ImageSize(4032, 3024, 4032, 3024)).max() > 100
    assert measure_errors(TOKENS, size, ImageSize(4032, 3024, 4032, 3024)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            (Box((100, 50, 500, 250), "a cat"),),
            (
                "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>",
                '[\n\t{"bbox_2d": [56, 28, 280, 140], "label": "a cat"}\n]',
                '[\n\t{"bbox_2d": [100, 100, 500, 500], "label": "a cat"}\n]',
            ),
        ),
        (
            (Box((0, 0, 1000, 500)), Box((250, 250), "图")),
            (
                "<|box_start|>(0,0),(1000,1000)<|box_end|>"
                "<|object_ref_start|>图<|object_ref_end|><|box_start|>(250,500)<|box_end|>",
                '[\n\t{"bbox_2d": [0, 0, 560, 280]},\n\t{"point_2d": [140, 140], "label": "图"}\n]',
                '[\n\t{"bbox_2d": [0, 0, 1000, 1000]},\n\t{"point_2d": [250, 500], "label": "图"}\n]',
            ),
        ),
        (
            (
                "The ",
                Box((), "cat"),
                ": ",
                Box((0, 0, 500, 250), "it"),
                " and click(",
                Box((0.5, 0.5), unit="sides"),
                ")",
            ),
            (
                "The <|object_ref_start|>cat<|object_ref_end|>: <|object_ref_start|>it<|object_ref_end|>"
                "<|box_start|>(0,0),(500,500)<|box_end|> and click(<|box_start|>(500,500)<|box_end|>)",
                'The cat: {"bbox_2d": [0, 0, 280, 140], "label": "it"} and click([280, 140])',
                'The cat: {"bbox_2d": [0, 0, 500, 500], "label": "it"} and click([500, 500])',
            ),
        ),
    ],
)
def test_boxes_are_written_in_the_notation_of_the_family(
    parts: tuple[Box | str, ...], expected: tuple[str, ...]
) -> None:
    written = [write_boxes(build_example(*parts), convention, [SIZE]) for convention in CONVENTIONS]
    assert tuple(example.reference for example in written) == expected
    # The boxes themselves are in pixels then, and can be written again.
    for example in written:
        assert all(box.unit == "pixels" for box in example.boxes)
        assert [write_boxes(example, c, [SIZE]).reference for c in CONVENTIONS] == list(expected)


def test_answers_are_read_in_any_notation() -> None:
    text = 'x (1,2),(3,4) {"bbox_2d": [30, 20, 10, 40]} <|box_start|>(5,6)<|box_end|> [1, 2, 3, 4] [1, 2]'
    found = parse_boxes(text, PIXELS, ImageSize(200, 100, 100, 100), 3)
    assert [text_box.box.corners for text_box in found] == [(2, 2, 6, 4), (20, 20, 60, 40), (10, 6), (2, 2, 6, 4)]
    assert {text_box.box.image for text_box in found} == {3}


@pytest.mark.parametrize("box", [Box((1, 1, 1, 5)), Box((1, 1, 1002, 5))])
def test_a_box_that_cannot_be_right_is_refused(box: Box) -> None:
    with pytest.raises(LorgnetteError, match=r"no area|outside"):
        write_boxes(build_example(box), TOKENS, [SIZE])


@pytest.fixture
def make_example(tmp_path: Path) -> Callable[..., Example]:
    """An example about an image that EXIF turns: 60×40 pixels as stored, 40×60 as people see it."""
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    PIL.Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)

    def make(*answer: Box | str, question: tuple[Box | str, ...] = ("Where?",)) -> Example:
        turns = Turn("user", (Image(tmp_path / "a.jpg"), *question)), Turn("assistant", answer)
        return Example("1", turns, Path("a.jsonl"), 1)

    return make


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_labels_and_references_are_one_text(model_type: str, make_example: Callable[..., Example]) -> None:
    processor = replace(
        Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(84, 56))), family=FAMILIES[model_type]
    )
    encoded = processor.encode(make_example(Box((20, 30, 40, 60), "a cat"), question=("The ", Box((), "cat"), "?")))
    labels = encoded.labels[encoded.labels != IGNORE_INDEX].tolist()[:-1]
    assert processor.tokenizer.decode(labels) == encoded.example.reference
    # The lower right quarter of the image as people see it, 40×60 pixels, which is resized to 56×84.
    expected = [28, 42, 56, 84] if model_type == "qwen2_5_vl" else [500, 500, 1000, 1000]
    [found] = parse_boxes(encoded.example.reference, BoxConvention("thousandths", "json"), ImageSize(1000, 1000, 0, 0))
    assert found.box == Box(tuple(map(float, expected)), "a cat")
    [back] = processor.parse_boxes(encoded.example.reference, encoded.example.images[0])
    assert back.box == Box((20, 30, 40, 60), "a cat")


def test_only_boxes_make_control_tokens(make_example: Callable[..., Example]) -> None:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings())
    names = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
    ids = [processor.tokenizer.control_tokens[name] for name in names]

    def count(example: Example) -> list[int]:
        input_ids = processor.encode(example).input_ids.tolist()
        return [input_ids.count(id_) for id_ in ids]

    box = Box((1, 2, 30, 40), "a <|box_end|><|im_end|> cat")
    assert count(make_example(box, question=("The ", Box((), "cat"), box))) == [3, 3, 2, 2]
    text = processor.write_boxes(make_example(box)).reference
    assert count(make_example(text, question=(text,))) == [0, 0, 0, 0]


def test_a_tokenizer_without_box_tokens_is_named(make_example: Callable[..., Example]) -> None:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings())
    del processor.tokenizer.control_tokens["<|box_start|>"]
    with pytest.raises(LorgnetteError, match=r"tokenizer has no <\|box_start\|>"):
        processor.encode(make_example(Box((1, 2, 30, 40))))


def test_boxes_too_small_for_the_models_numbers_are_counted(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (4000, 3000)).save(tmp_path / "a.png")
    example = build_example(Box((12, 12, 13, 13)), Box((12, 12, 300, 13)), Box((12, 12, 300, 300)))
    image = Image(tmp_path / "a.png")
    example = replace(example, turns=(Turn("user", (image, "Where?")), example.turns[1]))
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings())
    assert processor.count_flat_boxes(example) == 2
    [remark] = processor.list_remarks(0, 2)
    assert remark.startswith("2 boxes have no area in this model's numbers")
    plain = replace(example, turns=(example.turns[0], Turn("assistant", ("A car.",))))
    assert processor.count_flat_boxes(plain) == 0
    assert processor.list_remarks(0, 0) == []
