"""Time the vision tower on the benchmark job: its parts, its rate, and the whole way from JPEG to features.

    python bench/tower.py JOB --out FILE [--reference] [--budget 300]

JOB is made by bench/job.py. Writes seconds of the weights, features/s and TFLOP/s at several batch sizes, each
part's share, and `Features.prepare` with an empty and with a full disk cache; --reference also times transformers'
tower. The file is written after every measurement. Needs a GPU.
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
from machine import name_device
from results_file import ResultsFile
from torch import Tensor

from lorgnette.config import ProcessorSettings
from lorgnette.features.disk_cache import open_disk_cache
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.kernels.gelu import quick_gelu_
from lorgnette.kernels.layer_norm import layer_norm
from lorgnette.kernels.rotary_vision import apply_rotary_vision_
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.model_config import VisionConfig
from lorgnette.models.qwen2_vl.vision_tower import LAYER_NORM_EPS, VisionTower, attend_within_images
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

CUDA = torch.device("cuda")
SIDE = 20  # patches along an edge of a 280×280 image
BATCH_SIZES = (16, 41, 64, 82, 128)
PART_SECONDS = 30
"""Seconds that must be left for each part after the rates."""


def count_flop(config: VisionConfig, grid: ImageGrid) -> float:
    """FLOP of one image: two per multiply-add of the matrix products and of attention."""
    patches, wide = grid.h * grid.w, config.embed_dim * config.merge_size**2
    block = config.embed_dim * (4 * config.embed_dim + 2 * config.intermediate_size + 2 * patches)
    merger = grid.num_tokens * wide * (wide + config.out_features)
    return 2.0 * (patches * (config.patch_dim * config.embed_dim + config.depth * block) + merger)


def time_ms(work: Callable[[], Any], repeats: int = 10) -> float:
    """The median in milliseconds of the device's clock, after two rounds of warm-up."""
    times = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


@contextmanager
def record_seconds(figures: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    torch.cuda.synchronize()
    figures[name] = time.perf_counter() - start


def measure_ceiling() -> float:
    """TFLOP/s of an 8192³ product."""
    a, b = (torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / time_ms(lambda: a @ b, 30) / 1e9


def measure_rate(tower: Callable[..., Tensor], config: VisionConfig, count: int) -> dict[str, float]:
    grids = [ImageGrid(Image(Path(str(i))), 1, SIDE, SIDE, config.merge_size) for i in range(count)]
    patches = torch.randn(count * SIDE**2, config.patch_dim, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        ms = time_ms(lambda: tower(grids, patches))
    return {
        "images": count,
        "ms": ms,
        "tflop_s": sum(count_flop(config, grid) for grid in grids) / ms / 1e9,
        "features_s": 1000 * sum(grid.num_tokens for grid in grids) / ms,
    }


def measure_parts(tower: VisionTower, count: int) -> dict[str, dict[str, float]]:
    """Each part of a block alone: ms, and TFLOP/s or TB/s."""
    config, rows = tower.config, count * SIDE**2
    grids = [ImageGrid(Image(Path(str(i))), 1, SIDE, SIDE, config.merge_size) for i in range(count)]

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, device=CUDA, dtype=torch.bfloat16)

    x, y, qkv, hidden = (
        randn(rows, width)
        for width in (config.embed_dim, config.embed_dim, 3 * config.embed_dim, config.intermediate_size)
    )
    heads = qkv.view(rows, 3, config.num_heads, config.head_dim)
    spans, positions = tower._build_spans(grids), tower._build_patch_positions(grids)
    weight, bias = tower._get_weight, tower._deferred_biases[1]
    norm = (weight("blocks.0.norm1.weight"), weight("blocks.0.norm1.bias"), LAYER_NORM_EPS)
    products = {
        "qkv": (lambda: tower._apply_linear(x, "blocks.0.attn.qkv"), config.embed_dim * 3 * config.embed_dim),
        "proj": (lambda: x.addmm_(y, weight("blocks.0.attn.proj.weight").T, beta=0.5), config.embed_dim**2),
        "fc1": (lambda: tower._apply_linear(x, "blocks.0.mlp.fc1"), config.embed_dim * config.intermediate_size),
        "fc2": (
            lambda: x.addmm_(hidden, weight("blocks.0.mlp.fc2.weight").T, beta=0.5),
            config.embed_dim * config.intermediate_size,
        ),
        "attention": (lambda: attend_within_images(heads, spans), 2 * SIDE**2 * config.embed_dim),
    }
    elementwise = {
        "layer_norm": (lambda: layer_norm(x, bias, *norm), 2 * config.embed_dim),
        "rotate": (lambda: apply_rotary_vision_(heads, positions, *tower._rotary_table), 4 * config.embed_dim),
        "quick_gelu": (lambda: quick_gelu_(hidden), 2 * config.intermediate_size),
    }
    figures = {}
    for name, (work, multiply_adds) in products.items():
        ms = time_ms(work)
        figures[name] = {"ms": ms, "tflop_s": 2 * rows * multiply_adds / ms / 1e9}
    for name, (work, numbers) in elementwise.items():
        ms = time_ms(work)
        figures[name] = {"ms": ms, "tb_s": 2 * rows * numbers / ms / 1e9}
    return figures


def measure_features(job: Path, checkpoint: BaseCheckpoint, tower: VisionTower) -> dict[str, Any]:
    """The job's images from JPEG to features: without a disk cache, with an empty one, with a full one."""
    os.environ["XDG_CACHE_HOME"] = str(job / "cache")
    shutil.rmtree(job / "cache", ignore_errors=True)
    image_processor = ImageProcessor.from_folder(
        checkpoint.folder, ProcessorSettings(image_size=(14 * SIDE, 14 * SIDE))
    )
    grids = [
        ImageGrid(Image(path), 1, SIDE, SIDE, image_processor.merge_size) for path in sorted((job / "images").iterdir())
    ]
    figures: dict[str, Any] = {"images": len(grids)}
    features_by_cache: list[Tensor] = []
    for name in ("without_cache", "empty_cache", "full_cache"):
        cache = None
        with record_seconds(figures, f"{name}_open_s"):
            if name != "without_cache":
                cache = open_disk_cache(checkpoint, image_processor, CUDA, torch.bfloat16)
        features = Features(
            LazyTower(CUDA, torch.bfloat16, lambda: tower), image_processor, is_live=False, disk_cache=cache
        )
        with record_seconds(figures, f"{name}_s"):
            errors = features.prepare(grids)
        assert not errors
        figures[f"{name}_waited_s"] = features.decode_pool.wait_seconds
        features_by_cache.append(features.gather(grids))
        with record_seconds(figures, f"{name}_finish_s"):
            assert features.close() is None
        figures[f"{name}_found"] = features.num_cached
    figures["cached_equals_computed"] = torch.equal(features_by_cache[1], features_by_cache[2])
    return figures


def measure_reference(
    checkpoint: BaseCheckpoint, counts: Sequence[int], config: VisionConfig
) -> list[dict[str, float]]:
    from lorgnette.engine.peft_engine import load_base_model
    from lorgnette.features.image_features import HfVisionTower

    tower = HfVisionTower(load_base_model(checkpoint, CUDA, torch.bfloat16))
    return [measure_rate(tower, config, count) for count in counts]


def measure(arguments: argparse.Namespace, results: ResultsFile) -> dict[str, Any]:
    checkpoint = BaseCheckpoint.from_folder(arguments.job / "model")
    figures: dict[str, Any] = {}
    torch.cuda.init()
    for name in ("weights_first_s", "weights_again_s"):
        with record_seconds(figures, name):
            tower = VisionTower.from_checkpoint(checkpoint, CUDA, torch.bfloat16)
    figures["weights_gb"] = sum(tensor.nbytes for tensor in tower._weights.values()) / 1e9
    grid = ImageGrid(Image(Path("image")), 1, SIDE, SIDE, tower.config.merge_size)
    with record_seconds(figures, "first_call_s"):
        tower([grid], torch.zeros(SIDE**2, tower.config.patch_dim, device=CUDA, dtype=torch.bfloat16))
    figures["gflop_per_image"] = count_flop(tower.config, grid) / 1e9
    figures["matmul_tflop_s"] = measure_ceiling()
    figures["rates"] = []
    for count in BATCH_SIZES:
        figures["rates"].append(measure_rate(tower, tower.config, count))
        results.update(figures=figures)
    more: dict[str, Callable[[], Any]] = {
        "features": lambda: measure_features(arguments.job, checkpoint, tower),
        "parts_at_41_images": lambda: measure_parts(tower, 41),
    }
    if arguments.reference:
        more["transformers"] = lambda: measure_reference(checkpoint, BATCH_SIZES[:3], tower.config)
    for name, measure_part in more.items():
        if results.fits(PART_SECONDS, name):
            figures[name] = measure_part()
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            results.update(figures=figures)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/tower.py"], name_device(), arguments.budget)
    print(json.dumps(measure(arguments, results), indent=1))
