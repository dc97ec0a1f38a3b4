"""The batched vision tower gives transformers' pixels, features and gradients."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model.batches import render_pixels
from demo_model.vision import compute_features, patchify
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorgnette.demo.scenes import draw_scene, sample_scene


def test_patches_equal_the_image_processors(untrained: Path) -> None:
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(4)]
    theirs = Qwen2VLImageProcessorPil.from_pretrained(untrained)([draw_scene(s) for s in scenes], return_tensors="pt")
    ours = patchify(torch.from_numpy(np.stack([render_pixels(scene) for scene in scenes])))
    assert theirs.image_grid_thw.tolist() == [[1, 8, 8]] * 4
    torch.testing.assert_close(ours.flatten(0, 1), theirs.pixel_values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [4, 8])
def test_features_and_gradients_equal_transformers(untrained: Path, side: int) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(untrained, dtype=torch.float32)
    visual = model.model.visual
    for parameter in visual.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    pixels = torch.randn(3, side * side, 1176, generator=torch.Generator().manual_seed(0))
    theirs = visual(pixels.flatten(0, 1), grid_thw=torch.tensor([[1, side, side]] * 3)).pooler_output
    ours = compute_features(visual, pixels, side)
    torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=1e-5, rtol=0)
    parameters = list(visual.parameters())
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))
    expected = torch.autograd.grad((theirs * weights).sum(), parameters)
    gradients = torch.autograd.grad((ours.flatten(0, 1) * weights).sum(), parameters)
    for ours_grad, theirs_grad in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, atol=1e-4, rtol=1e-4)


def test_images_do_not_attend_to_each_other(untrained: Path) -> None:
    visual = Qwen2VLForConditionalGeneration.from_pretrained(untrained, dtype=torch.float32).model.visual
    pixels = torch.randn(2, 64, 1176, generator=torch.Generator().manual_seed(0))
    alone = compute_features(visual, pixels[:1], 8)
    torch.testing.assert_close(compute_features(visual, pixels, 8)[:1], alone, atol=1e-5, rtol=0)
