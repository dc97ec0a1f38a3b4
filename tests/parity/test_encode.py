"""Parity 1: tokens, labels, positions, grids and pixel values are the Hugging Face processor's, bit for bit."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from plain import ImageOnlyProcessor
from tiny_models import write_small_files
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorgnette.config import ProcessorSettings
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Box, Encoded, Example, Image


@pytest.fixture(scope="module", params=["own tokenizer", "real tokenizer"])
def folder(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny if request.param == "own tokenizer" else request.getfixturevalue("shared")("qwen2-vl")


@functools.cache
def load_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def processed(folder: Path, example: Example, least: int, most: int, *, answer: bool) -> Any:
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": least * 784, "longest_edge": most * 784})
    processor = ImageOnlyProcessor(images, load_tokenizer(folder), chat_template=template)
    turns = example.without_answer().turns if answer else example.turns
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "image"}
                if isinstance(p, Image)
                else {"type": "text", "text": p if isinstance(p, str) else p.text}
                for p in turn.parts
            ],
        }
        for turn in turns
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False)
    opened = [PIL.Image.open(p.path) for turn in turns for p in turn.parts if isinstance(p, Image)]
    return processor(text=[text], images=opened or None, return_tensors="pt"), opened


@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("budget", [(4, 1280), (4, 16), (40, 60)])
def test_equals_the_processor(
    folder: Path, conversations: list[Example], budget: tuple[int, int], answer: bool
) -> None:
    encoder = Processor.from_folder(folder, ProcessorSettings(image_size=None, image_tokens=budget))
    for example in conversations[:4]:  # the last one's control tokens stay text with us, on purpose
        encoded = encoder.encode(example, add_generation_prompt=answer)
        theirs, opened = processed(folder, example, *budget, answer=answer)
        np.testing.assert_array_equal(encoded.input_ids, theirs["input_ids"][0])
        if opened:
            pixels = np.concatenate(
                [encoder.image_processor.patchify(encoder.image_processor.resize(image)) for image in opened]
            )
            np.testing.assert_array_equal(pixels, theirs["pixel_values"])
            assert [[g.t, g.h, g.w] for g in encoded.grids] == theirs["image_grid_thw"].tolist()


@pytest.mark.parametrize("answer", [False, True])
def test_boxes_have_the_tokens_of_their_text(folder: Path, example: Callable[..., Example], answer: bool) -> None:
    """transformers makes control tokens of their names in a text."""
    box = Box((10, 20, 150, 110), "a red car")
    boxes = example(
        ("user", 0, "Find the ", Box((), "car"), "."), ("assistant", "Here: ", box, box, " and ", Box((5, 5)))
    )
    encoder = Processor.from_folder(folder, ProcessorSettings())
    encoded = encoder.encode(boxes, add_generation_prompt=answer)
    theirs, _ = processed(folder, encoded.example, 1, 1280, answer=answer)
    is_text = theirs["input_ids"][0] != encoder.tokenizer.control_tokens["<|image_pad|>"]
    own_text = encoded.input_ids[encoded.input_ids != encoder.tokenizer.control_tokens["<|image_pad|>"]]
    np.testing.assert_array_equal(own_text, theirs["input_ids"][0][is_text])
    # Negative control: a text with the same characters has other tokens.
    texts = tuple(
        replace(turn, parts=tuple(getattr(p, "text", p) for p in turn.parts)) for turn in encoded.example.turns
    )
    as_text = encoder.encode(replace(boxes, turns=texts), add_generation_prompt=answer)
    assert len(as_text.input_ids) > len(encoded.input_ids)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_pixels_of_every_family(model_type: str, image_files: list[Path], tmp_path: Path) -> None:
    """Negative control: the files of a family with other patches, or with another mean, give others."""
    others = [name for name in FAMILIES if name != model_type]
    for number, name in enumerate([model_type, *others]):
        folder = tmp_path / name
        folder.mkdir()
        write_small_files(folder, name)
        ours = Processor.from_folder(folder, ProcessorSettings(image_size=None, image_tokens=(4, 30))).image_processor
        config = json.loads((folder / "preprocessor_config.json").read_text())
        if number == 0:
            side = config["patch_size"] * config["merge_size"]
            sizes = {"shortest_edge": 4 * side**2, "longest_edge": 30 * side**2}
            expected, images = config, [PIL.Image.open(path) for path in image_files]
            theirs = Qwen2VLImageProcessorPil(**config | {"size": sizes})(images, return_tensors="np")
        pixels = np.concatenate([ours.patchify(ours.resize(image)) for image in images])
        assert np.array_equal(pixels, theirs["pixel_values"]) == (config == expected)


def labelled(encoder: Processor, encoded: Encoded) -> str:
    return encoder.tokenizer.decode_with_control_tokens(encoded.labels[encoded.labels != IGNORE_INDEX].tolist())


@pytest.mark.parametrize("end", ["template", "<|endoftext|>"])
def test_labels_are_the_answers_and_their_ends(folder: Path, conversations: list[Example], end: Any) -> None:
    encoder = Processor.from_folder(folder, ProcessorSettings(eos_token=end))
    token = "<|im_end|>" if end == "template" else end
    for example in conversations:
        encoded = encoder.encode(example)
        answers = [turn.text + token for turn in example.turns if turn.role == "assistant"]
        assert labelled(encoder, encoded) == "".join(answers)
        assert all(np.flatnonzero(encoded.labels != IGNORE_INDEX) > 0)
        assert (encoded.input_ids == encoder.tokenizer.control_tokens["<|image_pad|>"]).sum() == sum(
            g.num_tokens for g in encoded.grids
        )


def test_known_tokenisations(shared: Any) -> None:
    known = json.loads((shared("qwen2-vl") / "known_tokenisations.json").read_text())["cases"]
    encoder = Processor.from_folder(shared("qwen2-vl"), ProcessorSettings())
    plain = [case for case in known if "<|" not in case["text"]]
    assert plain
    for case in plain:
        assert encoder.tokenizer.encode(case["text"]) == case["ids"]
