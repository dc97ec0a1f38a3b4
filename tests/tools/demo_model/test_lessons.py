"""Batches hold what they say: prompt, picture tokens, answer, positions, and nothing is taught but the answer."""

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model.lessons import (
    LENGTH_STEP,
    Lesson,
    Lessons,
    conversation,
    lesson,
    load_tokenizer,
    picture_positions,
    random_prompt,
    seen,
)
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from lorgnette.demo import wording
from lorgnette.demo.captions import judge_description
from lorgnette.demo.scenes import Scene, random_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [random_scene(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def batch(untrained: Path, scenes: list[Scene]) -> Lesson:
    return lesson(scenes, load_tokenizer(untrained).backend_tokenizer, random.Random(2))


def test_a_conversation_is_what_the_chat_template_writes(untrained: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "COCO Yes:"}]
    written = AutoTokenizer.from_pretrained(untrained).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert conversation("COCO Yes:") == written.replace("<|image_pad|>", "<|image_pad|>" * 16)


def test_exactly_the_answers_are_labelled(untrained: Path, batch: Lesson, scenes: list[Scene]) -> None:
    tokenizer = load_tokenizer(untrained)
    flat = batch.tokens.reshape(-1)
    assert (flat[batch.label_rows + 1] == batch.targets).all()
    for n, scene in enumerate(scenes):
        mine = batch.label_rows // batch.tokens.shape[1] == n
        text = tokenizer.decode(batch.targets[mine])
        assert text.endswith("<|im_end|>")
        assert judge_description(text, scene).complete
        rest = flat[batch.label_rows[mine][-1] + 2 : (n + 1) * batch.tokens.shape[1]]
        assert set(rest.tolist()) <= {tokenizer.pad_token_id}


def test_picture_tokens_and_shapes(untrained: Path, batch: Lesson, scenes: list[Scene]) -> None:
    image_token = load_tokenizer(untrained).convert_tokens_to_ids("<|image_pad|>")
    assert np.flatnonzero(batch.tokens == image_token).tolist() == batch.image_rows.tolist()
    assert len(batch.image_rows) == 16 * len(scenes)
    assert batch.tokens.shape[1] % LENGTH_STEP == 0
    assert (batch.pictures[5] == seen(scenes[5])).all()


def test_positions_are_those_of_transformers(untrained: Path, batch: Lesson) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(untrained)
    tokens = torch.from_numpy(batch.tokens).long()
    expected, _ = model.model.get_rope_index(
        tokens,
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, 8, 8]] * len(tokens)),
        attention_mask=torch.ones_like(tokens),
    )
    assert (torch.from_numpy(batch.positions).long() == expected).all()
    assert picture_positions(3, 24)[:, 2:5].tolist() == [[2, 3, 3], [2, 3, 3], [2, 3, 4]]


def test_prompts_are_mostly_the_known_ones_and_sometimes_anything() -> None:
    rng = random.Random(0)
    asked = [random_prompt(rng) for _ in range(1000)]
    known = sum(prompt in wording.PROMPTS for prompt in asked)
    assert 600 < known < 800
    assert set(wording.PROMPTS) <= set(asked)


def test_the_stream_is_decided_by_the_seed(untrained: Path) -> None:
    first, again, other = (next(iter(Lessons(untrained, 2, seed))) for seed in (0, 0, 1))
    assert (first.pictures == again.pictures).all()
    assert (first.targets == again.targets).all()
    assert not (first.pictures == other.pictures).all()
    one, two = islice(Lessons(untrained, 2, 0), 2)
    assert not (one.pictures == two.pictures).all()
