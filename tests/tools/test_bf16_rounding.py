"""What rounding changes is found, measured and explained; the same model twice does not part."""

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
TOKENS = 12


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


@pytest.fixture(scope="module")
def prompts(encoder: Processor, conversations: list[Example]) -> list[Encoded]:
    return [encoder.encode(example, add_generation_prompt=True) for example in conversations]


def speaker(tiny: Path, encoder: Processor, prompts: list[Encoded], dtype: torch.dtype) -> Generator:
    checkpoint = BaseCheckpoint.from_folder(tiny)
    features = build_features(checkpoint, encoder.image_processor, CPU, torch.float32)
    features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return load_fast_model(checkpoint, None, features, dtype).speaker


def test_the_same_model_does_not_part(tiny: Path, encoder: Processor, prompts: list[Encoded]) -> None:
    exact, again = (speaker(tiny, encoder, prompts, torch.float32) for _ in range(2))
    found = compare_greedy(again, exact, prompts, TOKENS, use_adapter=False)
    assert found.divergences == ()
    assert found.error == 0
    assert 0 < found.smallest_gap <= found.median_gap


def test_answers_part_where_rounding_explains_it(tiny: Path, encoder: Processor, prompts: list[Encoded]) -> None:
    exact, half = (speaker(tiny, encoder, prompts, dtype) for dtype in (torch.float32, torch.bfloat16))
    found = compare_greedy(half, exact, prompts, 40, use_adapter=False)
    assert 0 < found.error < 0.1
    for parting in found.divergences:
        assert 0 <= parting.logit_gap < 10 * parting.logit_error
        assert parting.exact_token != parting.rounded_token
    assert len({parting.prompt_index for parting in found.divergences}) == len(found.divergences)
    assert str(found).startswith(f"{len(found.divergences)} of {len(prompts)} greedy answers part")


def test_a_defect_is_no_rounding(tiny: Path, encoder: Processor, prompts: list[Encoded]) -> None:
    """Negative control: a norm's weight that is off parts answers, and is off by far more than bf16 is."""
    exact, wrong = (speaker(tiny, encoder, prompts, torch.float32) for _ in range(2))
    wrong.decoder.layers[0].input_norm.mul_(1.5)
    found = compare_greedy(wrong, exact, prompts, TOKENS, use_adapter=False)
    half = compare_greedy(speaker(tiny, encoder, prompts, torch.bfloat16), exact, prompts, TOKENS, use_adapter=False)
    assert len(found.divergences) > len(half.divergences)
    assert found.error > 10 * half.error
