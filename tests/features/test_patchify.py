"""Patches made from bytes on the device are bit for bit those made on the host, which are the processor's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lorgnette.config import ProcessorSettings
from lorgnette.features.patchify import Patchifier
from lorgnette.processing.image_processor import ImageProcessor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
SIZES = [(28, 56), (84, 28), (84, 28), (28, 28), (140, 112)]


@pytest.fixture
def rule(tiny: Path) -> ImageProcessor:
    return ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(1, 30)))


@pytest.fixture
def pictures() -> list[np.ndarray]:
    drawn = np.random.default_rng(0)
    return [drawn.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bit_equal_to_the_host(
    rule: ImageProcessor, pictures: list[np.ndarray], device: str, dtype: torch.dtype
) -> None:
    made = Patchifier(rule, torch.device(device), dtype)(pictures).cpu()
    wanted = torch.from_numpy(np.concatenate([rule.patchify(picture) for picture in pictures])).to(dtype)
    assert torch.equal(made, wanted)
    assert not torch.equal(made, wanted.flip(0))


def test_one_picture_is_not_copied_together(rule: ImageProcessor, pictures: list[np.ndarray]) -> None:
    [first, *_] = pictures
    made = Patchifier(rule, torch.device("cpu"), torch.float32)([first])
    assert torch.equal(made, torch.from_numpy(rule.patchify(first)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_calls_that_follow_each_other_do_not_mix(rule: ImageProcessor) -> None:
    """More than there are slots, one larger than a slot, nothing waited for in between."""
    draw, device = np.random.default_rng(1), torch.device("cuda")
    calls = [[draw.integers(0, 256, (28 * n, 56, 3), dtype=np.uint8)] for n in (9, 3, 9, 40, 5, 9, 9, 1, 9)]
    patchify = Patchifier(rule, device, torch.float32, max_patches=2 * 9 * 4)
    busy = torch.randn(4096, 4096, device=device)
    made = []
    for call in calls:
        for _ in range(20):
            busy = busy @ busy / 4096
        made.append(patchify(call))
    for call, patches in zip(calls, made, strict=True):
        assert torch.equal(patches.cpu(), torch.from_numpy(rule.patchify(call[0])))
