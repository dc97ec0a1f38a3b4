"""What rounding changes is found, measured and explained; the same model twice does not part."""

from pathlib import Path

import pytest
import torch
from bf16_rounding import rounding

from lorgnette.config import Encode
from lorgnette.engine.loading import features_of, opened
from lorgnette.inference.generator import Speaker
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.processing.processor import Encoder
from lorgnette.types import Encoded, Example

CPU = torch.device("cpu")
TOKENS = 12


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Encoder:
    return Encoder.of_folder(tiny, Encode(size=None, image_tokens=(4, 30)))


@pytest.fixture(scope="module")
def prompts(encoder: Encoder, conversations: list[Example]) -> list[Encoded]:
    return [encoder.encode(example, answer=True) for example in conversations]


def speaker(tiny: Path, encoder: Encoder, prompts: list[Encoded], dtype: torch.dtype) -> Speaker:
    checkpoint = Checkpoint.at(tiny)
    features = features_of(checkpoint, encoder.rule, CPU, torch.float32)
    features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return opened(checkpoint, None, features, dtype).speaker


def test_the_same_model_does_not_part(tiny: Path, encoder: Encoder, prompts: list[Encoded]) -> None:
    exact, again = (speaker(tiny, encoder, prompts, torch.float32) for _ in range(2))
    found = rounding(again, exact, prompts, TOKENS, tuned=False)
    assert found.partings == ()
    assert found.error == 0
    assert 0 < found.smallest_gap <= found.median_gap


def test_answers_part_where_rounding_explains_it(tiny: Path, encoder: Encoder, prompts: list[Encoded]) -> None:
    exact, half = (speaker(tiny, encoder, prompts, dtype) for dtype in (torch.float32, torch.bfloat16))
    found = rounding(half, exact, prompts, 40, tuned=False)
    assert 0 < found.error < 0.1
    for parting in found.partings:
        assert 0 <= parting.gap < 10 * parting.error
        assert parting.exact != parting.rounded
    assert len({parting.prompt for parting in found.partings}) == len(found.partings)
    assert str(found).startswith(f"{len(found.partings)} of {len(prompts)} greedy answers part")


def test_a_defect_is_no_rounding(tiny: Path, encoder: Encoder, prompts: list[Encoded]) -> None:
    """Negative control: a norm's weight that is off parts answers, and is off by far more than bf16 is."""
    exact, wrong = (speaker(tiny, encoder, prompts, torch.float32) for _ in range(2))
    wrong.decoder.layers[0].norm1.mul_(1.5)
    found = rounding(wrong, exact, prompts, TOKENS, tuned=False)
    half = rounding(speaker(tiny, encoder, prompts, torch.bfloat16), exact, prompts, TOKENS, tuned=False)
    assert len(found.partings) > len(half.partings)
    assert found.error > 10 * half.error
