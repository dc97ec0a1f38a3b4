"""Every tower of the fast engine gives transformers' features, for odd grids, batched or one image at a time."""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import HfVisionTower
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import VisionTower, find_tower_class
from lorgnette.models.qwen2_5_vl import vision_tower as qwen2_5_vl
from lorgnette.models.qwen2_5_vl.vision_tower import split_into_windows
from lorgnette.models.qwen2_vl.vision_tower import ImageSpans, attend_within_images, compute_patch_positions
from lorgnette.models.qwen3_vl import vision_tower as qwen3_vl
from lorgnette.models.registry import (
    FAMILIES,
    HfConfig,
    VisionConfig,
    find_unsupported_feature,
    parse_configs,
    parse_sizes,
)
from lorgnette.types import Image, ImageGrid

CPU = torch.device("cpu")
ATTENTION_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-4}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=CUDA)]
SIZES = [(1, 8, 12), (1, 2, 2), (1, 10, 6), (1, 10, 6), (1, 2, 140), (3, 4, 6), (1, 18, 34), (1, 16, 16)]
GRIDS = [ImageGrid(Image(Path(str(i))), t, h, w, 2) for i, (t, h, w) in enumerate(SIZES)]
LENGTHS = [t * h * w for t, h, w in SIZES]


class Pair(NamedTuple):
    """A tower in both programs, with equal weights; patches of GRIDS and transformers' features of them."""

    model: Any
    tower: VisionTower
    patches: Tensor
    expected: Tensor


def read_config(folder: Path) -> HfConfig:
    return BaseCheckpoint.from_folder(folder).load_hf_config()


def load_model(folder: Path) -> Any:
    class_name = FAMILIES[read_config(folder)["model_type"]].class_name
    return getattr(transformers, class_name).from_pretrained(folder)


def run_reference(model: Any, patches: Tensor, grids: Sequence[ImageGrid] = GRIDS) -> Tensor:
    with torch.no_grad():
        return HfVisionTower(model)(grids, patches)


def fill_tower(
    model: Any,
    config: VisionConfig,
    change: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> VisionTower:
    """The fast engine's tower with the weights of transformers' model, or changed ones."""
    tower_class = find_tower_class(config.model_type)
    weights, views = tower_class.allocate_weights(config, device, dtype)
    for name, weight in model.model.visual.named_parameters():
        views[f"model.visual.{name}"].copy_(change(name, weight.detach()))
    return tower_class(config, weights)


@pytest.fixture(scope="module")
def find_pair(tiny_family: Callable[[str], Path]) -> Callable[[str], Pair]:
    """find_pair(model_type) → towers of tiny weights, but for sharp attention, large positions and biases."""
    pairs: dict[str, Pair] = {}

    def find(model_type: str) -> Pair:
        if model_type not in pairs:
            model = load_model(tiny_family(model_type))
            torch.manual_seed(2)
            for name, parameter in model.model.visual.named_parameters():
                if name.endswith(("qkv.weight", "pos_embed.weight")):
                    parameter.data.mul_(4)
                elif name.endswith("bias"):
                    parameter.data.normal_(0, 0.5)
            config = parse_configs(read_config(tiny_family(model_type)))[1]
            tower = fill_tower(model, config)
            patches = torch.randn(sum(LENGTHS), config.patch_dim)
            pairs[model_type] = Pair(model, tower, patches, run_reference(model, patches))
        return pairs[model_type]

    return find


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def pair(request: pytest.FixtureRequest, find_pair: Callable[[str], Pair]) -> Pair:
    return find_pair(request.param)


def measure_error(features: Tensor, expected: Tensor) -> float:
    """Root of the mean square, of all features."""
    return (features.float().cpu() - expected).square().mean().sqrt().item()


def test_the_features_equal_transformers(pair: Pair) -> None:
    assert pair.expected.shape[1] == pair.tower.config.feature_width
    assert pair.expected.std() > 0.1
    torch.testing.assert_close(pair.tower(GRIDS, pair.patches), pair.expected, atol=1e-5, rtol=0)


def test_weights_are_loaded_from_the_checkpoint(pair: Pair, tiny_family: Callable[[str], Path]) -> None:
    folder = tiny_family(pair.tower.config.model_type)
    tower = type(pair.tower).from_checkpoint(BaseCheckpoint.from_folder(folder), CPU, torch.float32)
    features = tower(GRIDS, pair.patches)
    torch.testing.assert_close(features, run_reference(load_model(folder), pair.patches), atol=1e-5, rtol=0)
    assert measure_error(features, pair.expected) > 1e-2


def test_batched_images_equal_single_images(pair: Pair) -> None:
    parts = pair.patches.split(LENGTHS)
    separate = [pair.tower([grid], patches) for grid, patches in zip(GRIDS, parts, strict=True)]
    torch.testing.assert_close(torch.cat(separate), pair.expected, atol=1e-5, rtol=0)


def test_frames_are_attended_separately(pair: Pair) -> None:
    frames = [dataclasses.replace(grid, t=1) for grid in GRIDS for _ in range(grid.t)]
    assert len(frames) > len(GRIDS)
    torch.testing.assert_close(pair.tower(frames, pair.patches), pair.expected, atol=1e-5, rtol=0)


def test_an_image_attends_to_no_other(pair: Pair) -> None:
    changed = pair.patches.clone()
    changed[: LENGTHS[0]] += 1
    before, after = pair.tower(GRIDS, pair.patches), pair.tower(GRIDS, changed)
    num_tokens = GRIDS[0].num_tokens
    assert torch.equal(before[num_tokens:], after[num_tokens:])
    assert not torch.allclose(before[:num_tokens], after[:num_tokens], atol=1e-2)


def test_another_grid_gives_other_features(pair: Pair) -> None:
    rotated = [dataclasses.replace(grid, h=grid.w, w=grid.h) for grid in GRIDS]
    assert measure_error(pair.tower(rotated, pair.patches), pair.expected) > 1e-2


@pytest.mark.parametrize(
    ("model_type", "ending"),
    [
        ("qwen2_vl", "attn.proj.bias"), ("qwen2_vl", "mlp.fc2.bias"), ("qwen2_5_vl", "mlp.down_proj.bias"),
        ("qwen2_5_vl", "mlp.gate_proj.bias"), ("qwen2_5_vl", "norm2.weight"), ("qwen3_vl", "patch_embed.proj.bias"),
        ("qwen3_vl", "attn.proj.bias"), ("qwen3_vl", "mlp.linear_fc2.bias"), ("qwen3_vl", "pos_embed.weight"),
        ("qwen3_vl", "deepstack_merger_list.1.norm.bias"),
    ],
)  # fmt: skip
def test_each_weight_matters(find_pair: Callable[[str], Pair], model_type: str, ending: str) -> None:
    """The comparison above would show a bias or a norm that is left out."""
    pair = find_pair(model_type)
    names: list[str] = []

    def remove(name: str, weight: Tensor) -> Tensor:
        if not name.endswith(ending):
            return weight
        names.append(name)
        return torch.zeros_like(weight)

    tower = fill_tower(pair.model, pair.tower.config, remove)
    assert names
    assert measure_error(tower(GRIDS, pair.patches), pair.expected) > 1e-3


def keep_image_order(rows: int, columns: int, side: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Windows' borders, but patches as in the image."""
    return np.arange(rows * columns, dtype=np.int32), split_into_windows(rows, columns, side)[1]


def interpolate_between_centers(h: int, w: int, merge: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Without align_corners."""
    corners, shares = [], []
    for row, column in compute_patch_positions(h, w, merge):
        source = np.maximum((np.array([row, column]) + 0.5) * side / np.array([h, w]) - 0.5, 0)
        low = np.minimum(source.astype(int), side - 1)
        high = np.minimum(low + 1, side - 1)
        (y, x), upper = source - low, (low, high)
        corners.append([a[0] * side + b[1] for a in upper for b in upper])
        shares.append([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x])
    return np.array(corners, np.int32), np.array(shares, np.float32)


@pytest.mark.parametrize(
    ("module", "name", "replacement"),
    [
        (qwen2_5_vl, "split_into_windows", keep_image_order),
        (qwen3_vl, "interpolate_positions", interpolate_between_centers),
    ],
)
def test_windows_and_positions_matter(
    find_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, replacement: Any
) -> None:
    pair = find_pair(module.__name__.split(".")[-2])
    monkeypatch.setattr(module, name, replacement)
    assert measure_error(pair.tower(GRIDS, pair.patches), pair.expected) > 1e-2


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2_5_vl", {"full_attention_blocks": ()}), ("qwen2_5_vl", {"full_attention_blocks": (0, 1, 2)}),
        ("qwen2_5_vl", {"window_size": 56}), ("qwen3_vl", {"deepstack_blocks": (1, 2)}),
    ],
)  # fmt: skip
def test_each_size_matters(find_pair: Callable[[str], Pair], model_type: str, changes: dict[str, Any]) -> None:
    pair = find_pair(model_type)
    tower = fill_tower(pair.model, dataclasses.replace(pair.tower.config, **changes))
    assert measure_error(tower(GRIDS, pair.patches), pair.expected) > 1e-2


@pytest.mark.parametrize("model_type", ["qwen3_vl_moe", "qwen3_5"])
def test_features_of_the_reference_engine_alone(tiny_family: Callable[[str], Path], model_type: str) -> None:
    folder = tiny_family(model_type)
    patches = torch.randn(sum(LENGTHS[:2]), 6 * read_config(folder)["vision_config"]["patch_size"] ** 2)
    features = run_reference(load_model(folder), patches, GRIDS[:2])
    num_tokens = sum(grid.num_tokens for grid in GRIDS[:2])
    _, vision = parse_sizes(read_config(folder))
    assert features.shape == (num_tokens, vision.feature_width)


def test_an_unsupported_tower_is_refused(tiny_family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_family("qwen2_vl"), tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"depth"', '"hidden_act": "silu", "depth"'))
    with pytest.raises(LorgnetteError, match="hidden_act 'silu'"):
        VisionTower.from_checkpoint(BaseCheckpoint.from_folder(folder), CPU, torch.float32)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("qwen2_5_vl", "window_size", 20),
        ("qwen3_vl", "deepstack_visual_indexes", [0, 4]),
        ("qwen3_vl", "deepstack_visual_indexes", [2, 2]),
    ],
)
def test_windows_and_levels_that_cannot_be_are_refused(
    tiny_family: Callable[[str], Path], model_type: str, key: str, value: object
) -> None:
    hf_config = read_config(tiny_family(model_type))
    assert find_unsupported_feature(hf_config) is None
    changed = {**hf_config, "vision_config": {**hf_config["vision_config"], key: value}}
    assert key in str(find_unsupported_feature(changed))


def test_patches_are_ordered_in_merge_blocks() -> None:
    assert compute_patch_positions(2, 4, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]


def test_windows_are_smaller_at_the_right_and_lower_edge() -> None:
    order, lengths = split_into_windows(3, 5, 2)
    assert order.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert lengths == (4, 4, 2, 2, 2, 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_fp32_as_transformers(
    pair: Pair, device: torch.device, dtype: torch.dtype
) -> None:
    patches, config = pair.patches.to(device, dtype), pair.tower.config
    rounded = fill_tower(pair.model, config, lambda name, weight: weight.to(dtype).float())
    exact = rounded(GRIDS, patches.float().cpu())
    theirs = run_reference(copy.deepcopy(pair.model).to(device, dtype), patches)
    ours = fill_tower(pair.model, config, device=device, dtype=dtype)(GRIDS, patches)
    error, control = measure_error(ours, exact), measure_error(ours.roll(1, 0), exact)
    assert error <= 1.1 * measure_error(theirs, exact)
    assert control > 10 * error


@pytest.mark.parametrize("device", DEVICES)
def test_a_residual_stream_may_grow_beyond_float16(pair: Pair, device: torch.device) -> None:
    """As in the last block of Qwen2.5-VL-3B, whose features transformers loses in float16."""
    config, last = pair.tower.config, f"blocks.{pair.tower.config.depth - 1}."
    model = copy.deepcopy(pair.model)
    for name, weight in model.model.visual.named_parameters():
        if name.startswith(last) and name.endswith(("fc2.weight", "down_proj.weight")):
            weight.data[:2] *= 3e4 / weight.data[:2].abs().max()
    exact = fill_tower(model, config, lambda name, weight: weight.half().float())(GRIDS, pair.patches.half().float())
    patches = pair.patches.to(device, torch.float16)
    features = fill_tower(model, config, device=device, dtype=torch.float16)(GRIDS, patches)
    assert measure_error(features, exact) < 2e-2 * exact.std().item()
    assert not run_reference(model.to(device, torch.float16), patches).isfinite().all()  # negative control


@CUDA
@pytest.mark.parametrize("D", [16, 64, 72, 80])
@pytest.mark.parametrize(
    ("dtype", "has_flash"),
    [(torch.bfloat16, True), (torch.float16, True), (torch.float16, False), (torch.float32, True)],
)
def test_attention_on_the_gpu_equals_the_cpu(
    D: int, dtype: torch.dtype, has_flash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as on a GPU without torch's flash attention."""
    monkeypatch.setattr("lorgnette.models.qwen2_vl.vision_tower.has_flash_attention", lambda device: has_flash)
    lengths = (24, 4, 64, 64, 32, 280, 16, 36)
    spans, on_gpu = (ImageSpans.from_lengths(lengths, torch.device(name)) for name in ("cpu", "cuda"))
    qkv = torch.randn(sum(lengths), 3, 4, D)
    features = attend_within_images(qkv.to("cuda", dtype), on_gpu).float().cpu()
    expected = attend_within_images(qkv.to(dtype).float(), spans)
    torch.testing.assert_close(features, expected, atol=ATTENTION_TOLERANCE[dtype], rtol=0)
    assert not torch.allclose(features, attend_within_images(qkv.flip(0), spans), atol=0.1)


@CUDA
def test_fp32_on_the_gpu_equals_the_cpu(pair: Pair) -> None:
    on_gpu = fill_tower(pair.model, pair.tower.config, device=torch.device("cuda"))(GRIDS, pair.patches.cuda())
    torch.testing.assert_close(on_gpu.cpu(), pair.expected, atol=1e-4, rtol=0)


@CUDA
def test_the_host_does_not_wait_for_the_gpu(pair: Pair) -> None:
    tower = fill_tower(pair.model, pair.tower.config, device=torch.device("cuda"), dtype=torch.bfloat16)
    on_gpu = pair.patches.cuda().bfloat16()
    tower(GRIDS, on_gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tower(GRIDS, on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
