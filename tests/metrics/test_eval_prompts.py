"""Examples with the same images and prompt become one prompt with several references."""

from pathlib import Path

import PIL.Image

from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.types import Box, Example, Image, PixelBox, Prediction, Turn


def build_example(image: str, prompt: str, answer: str) -> Example:
    turns = (Turn("user", (Image(Path(image)), prompt)), Turn("assistant", (answer,)))
    return Example(image, turns, Path("d.csv"), 1)


def test_captions_of_an_image_are_references_of_one_prompt() -> None:
    rows = [("red.png", "one"), ("blue.png", "two"), ("red.png", "three"), ("red.png", "one")]
    examples = [build_example(image, "What?", answer) for image, answer in rows]
    first, second = group_by_prompt(examples)
    assert first.references == ("one", "three", "one")  # duplicates count, as in the official scores
    assert (second.references, second.text, second.image_paths) == (("two",), "What?", (Path("blue.png"),))


def test_prompts_keep_the_order_of_their_first_examples() -> None:
    examples = [
        build_example(image, prompt, "yes") for prompt in ("What?", "Where?") for image in ("red.png", "blue.png") * 2
    ]
    assert [(prompt.image_paths[0].name, prompt.text) for prompt in group_by_prompt(examples)] == [
        ("red.png", "What?"), ("blue.png", "What?"), ("red.png", "Where?"), ("blue.png", "Where?"),
    ]  # fmt: skip


def test_boxes_are_in_pixels_and_a_prompt_is_the_same_for_every_model(tmp_path: Path) -> None:
    """Whatever their unit in the data, and whether a model's processor has written them already."""
    PIL.Image.new("RGB", (200, 50)).save(tmp_path / "a.png")

    def group(answer: Box, asked: Box) -> list[tuple[str, tuple[tuple[PixelBox, ...], ...]]]:
        turns = Turn("user", (Image(tmp_path / "a.png"), "What is at ", asked, "?")), Turn("assistant", (answer,))
        prompts = group_by_prompt([Example("a", turns, Path("d.csv"), 1)])
        return [(prompt.text, prompt.reference_boxes) for prompt in prompts]

    in_pixels = group(Box((20, 10, 100, 50), "cat"), Box((0, 0, 10, 10)))
    assert in_pixels == [("What is at [0, 0, 10, 10]?", ((PixelBox((20.0, 10.0, 100.0, 50.0), "cat"),),))]
    in_shares = group(Box((0.1, 0.2, 0.5, 1.0), "cat", unit="sides"), Box((0, 0, 0.05, 0.2), unit="sides"))
    assert in_shares == in_pixels
    written = group(Box((20, 10, 100, 50), "cat", written=("...",)), Box((0, 0, 10, 10), written=("[0, 0, 50, 200]",)))
    assert written == in_pixels
    assert group_by_prompt([build_example("red.png", "What?", "one")])[0].reference_boxes == ()


def test_a_row_has_the_boxes_of_its_answers() -> None:
    [prompt] = group_by_prompt([build_example("red.png", "What?", "one")])
    boxes = (PixelBox((1.0, 2.0, 3.0, 4.0)),)
    row = prompt.build_row(tuned=Prediction(prompt.example, "[1]", boxes=boxes))
    assert (row.base_boxes, row.tuned_boxes, row.reference_boxes, row.answer_boxes) == ((), boxes, (), boxes)
