"""Patches computed on the device are bit-identical to the image processor's on the host."""

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
def image_processor(tiny: Path) -> ImageProcessor:
    return ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(1, 30)))


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_equal_the_hosts(
    image_processor: ImageProcessor, images: list[np.ndarray], device: str, dtype: torch.dtype
) -> None:
    patches = Patchifier(image_processor, torch.device(device), dtype)(images).cpu()
    expected = torch.from_numpy(np.concatenate([image_processor.patchify(image) for image in images])).to(dtype)
    assert torch.equal(patches, expected)
    assert not torch.equal(patches, expected.flip(0))


def test_a_single_image_works(image_processor: ImageProcessor, images: list[np.ndarray]) -> None:
    [first, *_] = images
    patches = Patchifier(image_processor, torch.device("cpu"), torch.float32)([first])
    assert torch.equal(patches, torch.from_numpy(image_processor.patchify(first)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_consecutive_calls_do_not_mix(image_processor: ImageProcessor) -> None:
    """More calls than buffers, one larger than a buffer, without waiting in between."""
    rng, device = np.random.default_rng(1), torch.device("cuda")
    calls = [[rng.integers(0, 256, (28 * n, 56, 3), dtype=np.uint8)] for n in (9, 3, 9, 40, 5, 9, 9, 1, 9)]
    patchifier = Patchifier(image_processor, device, torch.float32, max_patches=2 * 9 * 4)
    busy = torch.randn(4096, 4096, device=device)
    results = []
    for call in calls:
        for _ in range(20):
            busy = busy @ busy / 4096
        results.append(patchifier(call))
    for call, patches in zip(calls, results, strict=True):
        assert torch.equal(patches.cpu(), torch.from_numpy(image_processor.patchify(call[0])))
