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
import torch
from plain import ImageOnlyProcessor
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorgnette.config import ProcessorSettings
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


def test_positions_equal_get_rope_index(tiny: Path, conversations: list[Example]) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny)
    for budget in ((4, 1280), (4, 16)):
        encoder = Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=budget))
        for encoded in map(encoder.encode, conversations):
            ids = torch.from_numpy(encoded.input_ids).long()[None]
            grids = torch.tensor([[g.t, g.h, g.w] for g in encoded.grids]) if encoded.grids else None
            images = (ids == encoder.tokenizer.control_tokens["<|image_pad|>"]).int()
            theirs, _ = model.model.get_rope_index(ids, images, image_grid_thw=grids)
            np.testing.assert_array_equal(encoded.position_ids, theirs[:, 0])


def test_positions_can_differ(tiny: Path, conversations: list[Example]) -> None:
    """Negative control: another grid gives other positions."""
    wide, narrow = (
        Processor.from_folder(tiny, ProcessorSettings(image_size=size)).encode(conversations[0])
        for size in ((56, 112), (112, 56))
    )
    assert len(wide.input_ids) == len(narrow.input_ids)
    assert not np.array_equal(wide.position_ids, narrow.position_ids)


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
