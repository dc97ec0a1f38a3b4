"""On a GPU in bfloat16 the engine is no further from an fp32 reference than transformers' own bfloat16 is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.processing.packing import pack
from lorgnette.types import Encoded, Example

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
ENCODE = ProcessorSettings(image_size=None, image_tokens=(4, 30))


@pytest.fixture(scope="module")
def pairs(make_pair: Callable[..., Any], tiny: Path) -> tuple[Any, Any]:
    """(fp32, bf16) on the GPU, the same weights."""
    device = torch.device("cuda")
    return make_pair(LORA, ENCODE, device, torch.float32), make_pair(LORA, ENCODE, device, torch.bfloat16)


def error(losses: torch.Tensor, reference: torch.Tensor) -> float:
    return (losses.float() - reference).square().mean().sqrt().item()


def test_no_further_from_fp32_than_transformers(pairs: tuple[Any, Any], conversations: list[Example]) -> None:
    exact, half = pairs
    encoded: list[Encoded] = [exact.processor.encode(example) for example in conversations]
    reference, _ = exact.compute_padded(encoded)
    ours, gradients = half.compute_packed([pack(encoded, sum(e.num_labels for e in encoded))])
    with torch.autocast("cuda", torch.bfloat16):
        theirs, _ = half.compute_padded(encoded)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert error(ours, reference) <= 1.1 * error(theirs, reference)
    assert error(ours, reference) > 0


def test_fp32_on_the_gpu_equals_transformers(pairs: tuple[Any, Any], conversations: list[Example]) -> None:
    exact, _ = pairs
    encoded = [exact.processor.encode(example) for example in conversations]
    ours, _ = exact.compute_packed([pack(encoded, sum(e.num_labels for e in encoded))])
    theirs, _ = exact.compute_padded(encoded)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
