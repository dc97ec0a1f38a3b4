"""Divergences of a bf16 model are report, measured and explained; the same model twice does not diverge."""

from pathlib import Path

import pytest
import torch
from bf16_rounding import compare_greedy

from lorgnette.config import ProcessorSettings
from lorgnette.engine.loading import build_features, load_fast_model
from lorgnette.inference.generator import Generator
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example

CPU = torch.device("cpu")
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


@pytest.fixture(scope="module")
def prompts(processor: Processor, conversations: list[Example]) -> list[Encoded]:
    return [processor.encode(example, add_generation_prompt=True) for example in conversations]


def build_generator(tiny: Path, processor: Processor, prompts: list[Encoded], dtype: torch.dtype) -> Generator:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    features = build_features(checkpoint, processor.image_processor, CPU, torch.float32)
    features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return Generator(load_fast_model(checkpoint, None, features, dtype).decoder, features)


def test_the_same_model_does_not_diverge(tiny: Path, processor: Processor, prompts: list[Encoded]) -> None:
    exact, same = (build_generator(tiny, processor, prompts, torch.float32) for _ in range(2))
    report = compare_greedy(same, exact, prompts, NUM_TOKENS, use_adapter=False)
    assert report.divergences == ()
    assert report.error == 0
    assert 0 < report.smallest_gap <= report.median_gap


def test_rounding_explains_the_divergences(tiny: Path, processor: Processor, prompts: list[Encoded]) -> None:
    exact, half = (build_generator(tiny, processor, prompts, dtype) for dtype in (torch.float32, torch.bfloat16))
    report = compare_greedy(half, exact, prompts, 40, use_adapter=False)
    assert 0 < report.error < 0.1
    for divergence in report.divergences:
        assert 0 <= divergence.logit_gap < 10 * divergence.logit_error
        assert divergence.exact_token != divergence.rounded_token
    assert len({divergence.prompt_index for divergence in report.divergences}) == len(report.divergences)
    assert str(report).startswith(f"{len(report.divergences)} of {len(prompts)} greedy answers diverge")


def test_a_defect_is_larger_than_rounding(tiny: Path, processor: Processor, prompts: list[Encoded]) -> None:
    """Negative control: a wrong norm weight makes far more divergences and a larger error than bf16."""
    exact, wrong = (build_generator(tiny, processor, prompts, torch.float32) for _ in range(2))
    wrong.decoder.layers[0].input_norm.mul_(1.5)
    report = compare_greedy(wrong, exact, prompts, NUM_TOKENS, use_adapter=False)
    half = compare_greedy(
        build_generator(tiny, processor, prompts, torch.bfloat16), exact, prompts, NUM_TOKENS, use_adapter=False
    )
    assert len(report.divergences) > len(half.divergences)
    assert report.error > 10 * half.error
