"""Time the vision tower on the benchmark job: its parts, its rate, and the road from JPEG to features.

    python bench/tower.py JOB --out FILE [--reference] [--budget 300]

JOB is made by bench/job.py. Writes seconds for the weights, features/s and TFLOP/s at several batches, each part's
share, and `Features.prepare` with an empty and with a full store; --reference also times transformers' tower. The file
is written after every measurement.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from kept import Kept, device_name
from torch import Tensor

from lorgnette.config import ProcessorSettings
from lorgnette.features.disk_cache import open_disk_cache
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.kernels.gelu import quick_gelu_
from lorgnette.kernels.layer_norm import layer_norm
from lorgnette.kernels.rotary_vision import apply_rotary_vision_
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import VisionConfig
from lorgnette.models.qwen2_vl.vision_tower import LAYER_NORM_EPS, VisionTower, attend_within_images
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

CUDA = torch.device("cuda")
SIDE = 20  # patches along the edge of a 280×280 picture
PICTURES = (16, 41, 64, 82, 128)
LONGEST = 30
"""Seconds that must be left for each of what comes after the rates."""


def flop(shape: VisionConfig, grid: ImageGrid) -> float:
    """Of one picture: two for every multiplication and addition of the products and of attention."""
    patches, wide = grid.h * grid.w, shape.embed_dim * shape.merge_size**2
    block = shape.embed_dim * (4 * shape.embed_dim + 2 * shape.intermediate_size + 2 * patches)
    merger = grid.num_tokens * wide * (wide + shape.out_features)
    return 2.0 * (patches * (shape.patch_dim * shape.embed_dim + shape.depth * block) + merger)


def milliseconds(work: Callable[[], Any], repeats: int = 10) -> float:
    """The median on the device's clock, after two rounds that do not count."""
    times = []
    for _ in range(repeats + 2):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended))
    return statistics.median(times[2:])


@contextmanager
def seconds(into: dict[str, Any], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    torch.cuda.synchronize()
    into[name] = time.perf_counter() - begun


def ceiling() -> float:
    """TFLOP/s of an 8192³ product."""
    a, b = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / milliseconds(lambda: a @ b, 30) / 1e9


def rate(tower: Callable[..., Tensor], shape: VisionConfig, count: int) -> dict[str, float]:
    grids = [ImageGrid(Image(Path(str(i))), 1, SIDE, SIDE, shape.merge_size) for i in range(count)]
    patches = torch.randn(count * SIDE**2, shape.patch_dim, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        took = milliseconds(lambda: tower(grids, patches))
    return {
        "pictures": count,
        "ms": took,
        "tflop_s": sum(flop(shape, grid) for grid in grids) / took / 1e9,
        "features_s": 1000 * sum(grid.num_tokens for grid in grids) / took,
    }


def parts(tower: VisionTower, count: int) -> dict[str, dict[str, float]]:
    """Each part of a block alone: ms, and TFLOP/s or TB/s."""
    shape, rows = tower.config, count * SIDE**2
    grids = [ImageGrid(Image(Path(str(i))), 1, SIDE, SIDE, shape.merge_size) for i in range(count)]

    def made(*size: int) -> Tensor:
        return torch.randn(*size, device=CUDA, dtype=torch.bfloat16)

    x, y, qkv, hidden = (
        made(rows, wide) for wide in (shape.embed_dim, shape.embed_dim, 3 * shape.embed_dim, shape.intermediate_size)
    )
    heads = qkv.view(rows, 3, shape.num_heads, shape.head_dim)
    spans, places = tower._build_spans(grids), tower._build_patch_positions(grids)
    of, shift = tower._get_weight, tower._deferred_biases[1]
    norm = (of("blocks.0.norm1.weight"), of("blocks.0.norm1.bias"), LAYER_NORM_EPS)
    products = {
        "qkv": (lambda: tower._apply_linear(x, "blocks.0.attn.qkv"), shape.embed_dim * 3 * shape.embed_dim),
        "proj": (lambda: x.addmm_(y, of("blocks.0.attn.proj.weight").T, beta=0.5), shape.embed_dim**2),
        "fc1": (lambda: tower._apply_linear(x, "blocks.0.mlp.fc1"), shape.embed_dim * shape.intermediate_size),
        "fc2": (
            lambda: x.addmm_(hidden, of("blocks.0.mlp.fc2.weight").T, beta=0.5),
            shape.embed_dim * shape.intermediate_size,
        ),
        "attention": (lambda: attend_within_images(heads, spans), 2 * SIDE**2 * shape.embed_dim),
    }
    passes = {
        "layer_norm": (lambda: layer_norm(x, shift, *norm), 2 * shape.embed_dim),
        "rotate": (lambda: apply_rotary_vision_(heads, places, *tower._rotary_table), 4 * shape.embed_dim),
        "quick_gelu": (lambda: quick_gelu_(hidden), 2 * shape.intermediate_size),
    }
    found = {}
    for name, (work, multiplications) in products.items():
        took = milliseconds(work)
        found[name] = {"ms": took, "tflop_s": 2 * rows * multiplications / took / 1e9}
    for name, (work, numbers) in passes.items():
        took = milliseconds(work)
        found[name] = {"ms": took, "tb_s": 2 * rows * numbers / took / 1e9}
    return found


def road(job: Path, checkpoint: BaseCheckpoint, tower: VisionTower) -> dict[str, Any]:
    """The job's own pictures from JPEG to features: store empty, then full."""
    os.environ["XDG_CACHE_HOME"] = str(job / "cache")
    shutil.rmtree(job / "cache", ignore_errors=True)
    rule = ImageProcessor.from_folder(checkpoint.folder, ProcessorSettings(image_size=(14 * SIDE, 14 * SIDE)))
    grids = [ImageGrid(Image(path), 1, SIDE, SIDE, rule.merge_size) for path in sorted((job / "pictures").iterdir())]
    found: dict[str, Any] = {"pictures": len(grids)}
    kept: list[Tensor] = []
    for name in ("without_store", "empty_store", "full_store"):
        store = None
        with seconds(found, f"{name}_open_s"):
            if name != "without_store":
                store = open_disk_cache(checkpoint, rule, CUDA, torch.bfloat16)
        features = Features(LazyTower(CUDA, torch.bfloat16, lambda: tower), rule, is_live=False, disk_cache=store)
        with seconds(found, f"{name}_s"):
            failed = features.prepare(grids)
        assert not failed
        found[f"{name}_waited_s"] = features.decode_wait_seconds
        kept.append(features.gather(grids))
        with seconds(found, f"{name}_finish_s"):
            assert features.close() is None
        found[f"{name}_found"] = features.num_cached
    found["stored_as_made"] = torch.equal(kept[1], kept[2])
    return found


def reference(checkpoint: BaseCheckpoint, counts: Sequence[int], shape: VisionConfig) -> list[dict[str, float]]:
    from lorgnette.engine.hf_loading import load_base_model
    from lorgnette.features.image_features import HfVisionTower

    theirs = HfVisionTower(load_base_model(checkpoint, CUDA, torch.bfloat16))
    return [rate(theirs, shape, count) for count in counts]


def measured(given: argparse.Namespace, kept: Kept) -> dict[str, Any]:
    checkpoint = BaseCheckpoint.from_folder(given.job / "model")
    found: dict[str, Any] = {}
    torch.cuda.init()
    for name in ("weights_first_s", "weights_again_s"):
        with seconds(found, name):
            tower = VisionTower.from_checkpoint(checkpoint, CUDA, torch.bfloat16)
    found["weights_gb"] = sum(tensor.nbytes for tensor in tower._weights.values()) / 1e9
    one = ImageGrid(Image(Path("one")), 1, SIDE, SIDE, tower.config.merge_size)
    with seconds(found, "first_call_s"):
        tower([one], torch.zeros(SIDE**2, tower.config.patch_dim, device=CUDA, dtype=torch.bfloat16))
    found["gflop_a_picture"] = flop(tower.config, one) / 1e9
    found["matmul_tflop_s"] = ceiling()
    found["rates"] = []
    for count in PICTURES:
        found["rates"].append(rate(tower, tower.config, count))
        kept.keep(figures=found)
    more: dict[str, Callable[[], Any]] = {
        "road": lambda: road(given.job, checkpoint, tower),
        "parts_at_41_pictures": lambda: parts(tower, 41),
    }
    if given.reference:
        more["transformers"] = lambda: reference(checkpoint, PICTURES[:3], tower.config)
    for name, measure in more.items():
        if kept.fits(LONGEST, name):
            found[name] = measure()
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            kept.keep(figures=found)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--budget", type=float, default=300, help="seconds everything may take")
    given = parser.parse_args()
    kept = Kept(given.out, ["bench/tower.py"], device_name(), given.budget)
    print(json.dumps(measured(given, kept), indent=1))
