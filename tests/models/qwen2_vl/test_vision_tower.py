"""Our vision tower gives transformers' features, over odd grids, together as one at a time."""

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
def theirs(loaded: Callable[[], Any]) -> Any:
    """transformers' tower with biases that are not zero, as a fresh model's are."""
    visual = loaded().get_submodule("model.visual")
    torch.manual_seed(1)
    for name, parameter in visual.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5)
    return visual


@pytest.fixture(scope="module")
def ours(theirs: Any, tiny: Path) -> VisionTower:
    shape = VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tiny), CPU, torch.float32).config
    return VisionTower(shape, {f"model.visual.{name}": p.data for name, p in theirs.named_parameters()})


@pytest.fixture(scope="module")
def patches() -> Tensor:
    torch.manual_seed(2)
    return torch.randn(sum(grid.h * grid.w for grid in GRIDS), 1176)


def plain(visual: Any, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
    with torch.no_grad():
        shapes = torch.tensor([[g.t, g.h, g.w] for g in grids], device=patches.device)
        return visual(patches, grid_thw=shapes).pooler_output


def test_the_features_are_those_of_transformers(theirs: Any, ours: VisionTower, patches: Tensor) -> None:
    wanted = plain(theirs, GRIDS, patches)
    assert wanted.abs().max() > 0.5
    torch.testing.assert_close(ours(GRIDS, patches), wanted, atol=1e-5, rtol=0)


def test_together_is_one_at_a_time(ours: VisionTower, patches: Tensor) -> None:
    parts = patches.split([grid.h * grid.w for grid in GRIDS])
    alone = [ours([grid], part) for grid, part in zip(GRIDS, parts, strict=True)]
    torch.testing.assert_close(ours(GRIDS, patches), torch.cat(alone), atol=1e-5, rtol=0)


def test_a_picture_sees_no_other(ours: VisionTower, patches: Tensor) -> None:
    changed = patches.clone()
    changed[: GRIDS[0].h * GRIDS[0].w] += 1
    before, after = (ours(GRIDS, rows)[GRIDS[0].num_tokens :] for rows in (patches, changed))
    assert torch.equal(before, after)


def test_another_shape_gives_other_features(theirs: Any, ours: VisionTower, patches: Tensor) -> None:
    turned = [ImageGrid(grid.image, 1, grid.w, grid.h, 2) for grid in GRIDS]
    assert not torch.allclose(ours(turned, patches), plain(theirs, GRIDS, patches), atol=1e-3)


def test_the_biases_left_out_of_the_stream_matter(theirs: Any, ours: VisionTower, patches: Tensor) -> None:
    weights = {f"model.visual.{name}": p.data for name, p in theirs.named_parameters()}
    without = VisionTower(
        ours.config, weights | {n: torch.zeros_like(t) for n, t in weights.items() if "proj.bias" in n}
    )
    assert not torch.allclose(without(GRIDS, patches), ours(GRIDS, patches), atol=1e-3)


def test_several_frames_are_attended_one_by_one(theirs: Any, ours: VisionTower) -> None:
    film = [ImageGrid(Image(Path("film")), 3, 4, 6, 2)]
    patches = torch.randn(72, 1176)
    torch.testing.assert_close(ours(film, patches), plain(theirs, film, patches), atol=1e-5, rtol=0)


def test_the_checkpoints_own_weights_are_read(loaded: Callable[[], Any], tiny: Path, patches: Tensor) -> None:
    tower = VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tiny), CPU, torch.float32)
    wanted = plain(loaded().get_submodule("model.visual"), GRIDS, patches)
    torch.testing.assert_close(tower(GRIDS, patches), wanted, atol=1e-5, rtol=0)


def test_a_tower_that_is_not_known_is_refused(tiny: Path, tmp_path: Path) -> None:
    for path in tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = (tiny / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config.replace('"depth"', '"hidden_act": "silu", "depth"'))
    with pytest.raises(LorgnetteError, match="hidden_act 'silu'"):
        VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tmp_path), CPU, torch.float32)


def test_patches_stand_in_blocks() -> None:
    assert compute_patch_positions(2, 4, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


@CUDA
@pytest.mark.parametrize("D", [16, 64, 80])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_on_the_gpu_is_plain_attention(D: int, dtype: torch.dtype) -> None:
    lengths = tuple(h * w for h, w in SIZES)
    borders = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(sum(lengths), 3, 4, D)
    made = attend_within_images(qkv.to("cuda", dtype), ImageSpans(lengths, borders.cuda())).float().cpu()
    wanted = attend_within_images(qkv.to(dtype).float(), ImageSpans(lengths, borders))
    torch.testing.assert_close(made, wanted, atol=2e-2 if dtype == torch.bfloat16 else 1e-4, rtol=0)
    assert not torch.allclose(made, attend_within_images(qkv.flip(0), ImageSpans(lengths, borders)), atol=0.1)


@CUDA
def test_on_the_gpu_in_fp32_it_is_the_cpus(ours: VisionTower, patches: Tensor) -> None:
    moved = VisionTower(ours.config, {name: tensor.cuda() for name, tensor in ours._weights.items()})
    torch.testing.assert_close(moved(GRIDS, patches.cuda()).cpu(), ours(GRIDS, patches), atol=1e-4, rtol=0)


@CUDA
def test_in_bf16_it_is_no_further_from_fp32_than_transformers(theirs: Any, ours: VisionTower, patches: Tensor) -> None:
    half = {name: tensor.bfloat16() for name, tensor in ours._weights.items()}
    exact = VisionTower(ours.config, {name: tensor.float() for name, tensor in half.items()})
    wanted = exact(GRIDS, patches.bfloat16().float())
    tower = VisionTower(ours.config, {name: tensor.cuda() for name, tensor in half.items()})
    import copy

    visual = copy.deepcopy(theirs).to("cuda", torch.bfloat16)
    errors = [
        (made.float().cpu() - wanted).pow(2).mean().sqrt().item()
        for made in (tower(GRIDS, patches.cuda().bfloat16()), plain(visual, GRIDS, patches.cuda().bfloat16()))
    ]
    assert errors[0] <= 1.1 * errors[1]


@CUDA
def test_nothing_waits_for_the_gpu(ours: VisionTower, patches: Tensor) -> None:
    tower = VisionTower(ours.config, {name: tensor.cuda().bfloat16() for name, tensor in ours._weights.items()})
    moved = patches.cuda().bfloat16()
    tower(GRIDS, moved)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tower(GRIDS, moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
