"""A batch has the right prompts, image tokens, positions and answers, and only the answers are labels."""

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import wording
from demo_model.batches import (
    LENGTH_MULTIPLE,
    Batch,
    BatchStream,
    build_batch,
    compute_position_ids,
    format_prompt,
    load_tokenizer,
    render_pixels,
    sample_prompt,
)
from demo_model.descriptions import check_description
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from lorgnette.demo.scenes import Scene, sample_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [sample_scene(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def batch(untrained: Path, scenes: list[Scene]) -> Batch:
    return build_batch(scenes, load_tokenizer(untrained).backend_tokenizer, random.Random(2))


def test_the_prompt_is_what_the_chat_template_writes(untrained: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "COCO Yes:"}]
    written = AutoTokenizer.from_pretrained(untrained).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert format_prompt("COCO Yes:") == written.replace("<|image_pad|>", "<|image_pad|>" * 16)


def test_only_the_answers_are_labels(untrained: Path, batch: Batch, scenes: list[Scene]) -> None:
    tokenizer = load_tokenizer(untrained)
    flat = batch.input_ids.reshape(-1)
    assert (flat[batch.label_indices + 1] == batch.labels).all()
    for n, scene in enumerate(scenes):
        is_own = batch.label_indices // batch.input_ids.shape[1] == n
        text = tokenizer.decode(batch.labels[is_own])
        assert text.endswith("<|im_end|>")
        assert check_description(text, scene).is_complete
        rest = flat[batch.label_indices[is_own][-1] + 2 : (n + 1) * batch.input_ids.shape[1]]
        assert set(rest.tolist()) <= {tokenizer.pad_token_id}


def test_image_tokens_and_shapes(untrained: Path, batch: Batch, scenes: list[Scene]) -> None:
    image_token = load_tokenizer(untrained).convert_tokens_to_ids("<|image_pad|>")
    assert np.flatnonzero(batch.input_ids == image_token).tolist() == batch.image_token_indices.tolist()
    assert len(batch.image_token_indices) == 16 * len(scenes)
    assert batch.input_ids.shape[1] % LENGTH_MULTIPLE == 0
    assert (batch.images[5] == render_pixels(scenes[5])).all()


def test_positions_equal_transformers(untrained: Path, batch: Batch) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(untrained)
    tokens = torch.from_numpy(batch.input_ids).long()
    expected, _ = model.model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, 8, 8]] * len(tokens)),
        attention_mask=torch.ones_like(tokens),
    )
    assert (torch.from_numpy(batch.position_ids).long() == expected).all()
    assert compute_position_ids(3, 24)[:, 2:5].tolist() == [[2, 3, 3], [2, 3, 3], [2, 3, 4]]


def test_prompts_are_mostly_common_and_sometimes_random() -> None:
    rng = random.Random(0)
    prompts = [sample_prompt(rng) for _ in range(1000)]
    known = sum(prompt in wording.PROMPTS for prompt in prompts)
    assert 600 < known < 800
    assert set(wording.PROMPTS) <= set(prompts)


def test_the_seed_determines_the_stream(untrained: Path) -> None:
    first, again, other = (next(iter(BatchStream(untrained, 2, seed))) for seed in (0, 0, 1))
    assert (first.images == again.images).all()
    assert (first.labels == again.labels).all()
    assert not (first.images == other.images).all()
    first, second = islice(BatchStream(untrained, 2, 0), 2)
    assert not (first.images == second.images).all()
