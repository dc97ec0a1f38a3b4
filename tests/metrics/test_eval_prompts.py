"""Examples with the same images and prompt become one prompt with several references."""

from pathlib import Path

from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.types import Example, Image, Turn


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
