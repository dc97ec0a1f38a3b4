"""The vision tower's features equal transformers', for odd grids, batched or one image at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.vision_tower import (
    ImageSpans,
    VisionTower,
    attend_within_images,
    compute_patch_positions,
)
from lorgnette.types import Image, ImageGrid

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
SIZES = [(4, 6), (2, 2), (10, 4), (10, 4), (2, 140), (6, 6)]
GRIDS = [ImageGrid(Image(Path(str(i))), 1, h, w, 2) for i, (h, w) in enumerate(SIZES)]


@pytest.fixture(scope="module")
def reference(load_tiny_model: Callable[[], Any]) -> Any:
    """transformers' tower. Its biases are set to noise: those of a new model are zero."""
    visual = load_tiny_model().get_submodule("model.visual")
    torch.manual_seed(1)
    for name, parameter in visual.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5)
    return visual


@pytest.fixture(scope="module")
def tower(reference: Any, tiny: Path) -> VisionTower:
    config = VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tiny), CPU, torch.float32).config
    return VisionTower(config, {f"model.visual.{name}": p.data for name, p in reference.named_parameters()})


@pytest.fixture(scope="module")
def patches() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(sum(grid.h * grid.w for grid in GRIDS), 1176)


def run_reference(visual: Any, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
    with torch.no_grad():
        shapes = torch.tensor([[g.t, g.h, g.w] for g in grids], device=patches.device)
        return visual(patches, grid_thw=shapes).pooler_output


def test_the_features_equal_transformers(reference: Any, tower: VisionTower, patches: Tensor) -> None:
    expected = run_reference(reference, GRIDS, patches)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(tower(GRIDS, patches), expected, atol=1e-5, rtol=0)


def test_batched_images_equal_single_images(tower: VisionTower, patches: Tensor) -> None:
    parts = patches.split([grid.h * grid.w for grid in GRIDS])
    separate = [tower([grid], patches_of_image) for grid, patches_of_image in zip(GRIDS, parts, strict=True)]
    torch.testing.assert_close(tower(GRIDS, patches), torch.cat(separate), atol=1e-5, rtol=0)


def test_an_image_attends_to_no_other(tower: VisionTower, patches: Tensor) -> None:
    changed = patches.clone()
    changed[: GRIDS[0].h * GRIDS[0].w] += 1
    before, after = (tower(GRIDS, rows)[GRIDS[0].num_tokens :] for rows in (patches, changed))
    assert torch.equal(before, after)


def test_another_grid_gives_other_features(reference: Any, tower: VisionTower, patches: Tensor) -> None:
    rotated = [ImageGrid(grid.image, 1, grid.w, grid.h, 2) for grid in GRIDS]
    assert not torch.allclose(tower(rotated, patches), run_reference(reference, GRIDS, patches), atol=1e-3)


def test_the_deferred_biases_matter(reference: Any, tower: VisionTower, patches: Tensor) -> None:
    weights = {f"model.visual.{name}": p.data for name, p in reference.named_parameters()}
    without_biases = VisionTower(
        tower.config, weights | {n: torch.zeros_like(t) for n, t in weights.items() if "proj.bias" in n}
    )
    assert not torch.allclose(without_biases(GRIDS, patches), tower(GRIDS, patches), atol=1e-3)


def test_frames_are_attended_separately(reference: Any, tower: VisionTower) -> None:
    frames = [ImageGrid(Image(Path("frames")), 3, 4, 6, 2)]
    patches = torch.randn(72, 1176)
    torch.testing.assert_close(tower(frames, patches), run_reference(reference, frames, patches), atol=1e-5, rtol=0)


def test_weights_are_loaded_from_the_checkpoint(
    load_tiny_model: Callable[[], Any], tiny: Path, patches: Tensor
) -> None:
    tower = VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tiny), CPU, torch.float32)
    expected = run_reference(load_tiny_model().get_submodule("model.visual"), GRIDS, patches)
    torch.testing.assert_close(tower(GRIDS, patches), expected, atol=1e-5, rtol=0)


def test_an_unsupported_tower_is_refused(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = (tiny / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config.replace('"depth"', '"hidden_act": "silu", "depth"'))
    with pytest.raises(LorgnetteError, match="hidden_act 'silu'"):
        VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tmp_path), CPU, torch.float32)


def test_patches_are_ordered_in_merge_blocks() -> None:
    assert compute_patch_positions(2, 4, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


@CUDA
@pytest.mark.parametrize("D", [16, 64, 80])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_on_the_gpu_equals_the_cpu(D: int, dtype: torch.dtype) -> None:
    lengths = tuple(h * w for h, w in SIZES)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(sum(lengths), 3, 4, D)
    features = attend_within_images(qkv.to("cuda", dtype), ImageSpans(lengths, cu_seqlens.cuda())).float().cpu()
    expected = attend_within_images(qkv.to(dtype).float(), ImageSpans(lengths, cu_seqlens))
    torch.testing.assert_close(features, expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-4, rtol=0)
    assert not torch.allclose(features, attend_within_images(qkv.flip(0), ImageSpans(lengths, cu_seqlens)), atol=0.1)


@CUDA
def test_fp32_on_the_gpu_equals_the_cpu(tower: VisionTower, patches: Tensor) -> None:
    on_gpu = VisionTower(tower.config, {name: tensor.cuda() for name, tensor in tower._weights.items()})
    torch.testing.assert_close(on_gpu(GRIDS, patches.cuda()).cpu(), tower(GRIDS, patches), atol=1e-4, rtol=0)


@CUDA
def test_bf16_is_as_close_to_fp32_as_transformers(reference: Any, tower: VisionTower, patches: Tensor) -> None:
    weights_bf16 = {name: tensor.bfloat16() for name, tensor in tower._weights.items()}
    tower_fp32 = VisionTower(tower.config, {name: tensor.float() for name, tensor in weights_bf16.items()})
    expected = tower_fp32(GRIDS, patches.bfloat16().float())
    tower = VisionTower(tower.config, {name: tensor.cuda() for name, tensor in weights_bf16.items()})
    import copy

    visual = copy.deepcopy(reference).to("cuda", torch.bfloat16)
    errors = [
        (features.float().cpu() - expected).pow(2).mean().sqrt().item()
        for features in (
            tower(GRIDS, patches.cuda().bfloat16()),
            run_reference(visual, GRIDS, patches.cuda().bfloat16()),
        )
    ]
    assert errors[0] <= 1.1 * errors[1]


@CUDA
def test_the_host_does_not_wait_for_the_gpu(tower: VisionTower, patches: Tensor) -> None:
    tower = VisionTower(tower.config, {name: tensor.cuda().bfloat16() for name, tensor in tower._weights.items()})
    on_gpu = patches.cuda().bfloat16()
    tower(GRIDS, on_gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tower(GRIDS, on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
