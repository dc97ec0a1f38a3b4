"""Time vision towers: at true shapes with random weights, or on the benchmark job the whole way from JPEG to features.

    python bench/tower.py --models Qwen2-VL-7B,Qwen2.5-VL-7B,Qwen3-VL-2B,Qwen3-VL-8B --out FILE [--budget 300]
    python bench/tower.py JOB --out FILE [--reference] [--budget 300]

The first writes ms, features/s and TFLOP/s at several numbers of images, and the kernels of one call. The second, on
what bench/job.py made, writes seconds of the weights too, and of `Features.prepare` with an empty and with a full disk
cache; --reference also times transformers' tower. Images have 280×280 pixels, 288×288 where a token has 32. The file is
written after every measurement. Needs a GPU.
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
from job import MODELS
from machine import measure_matmul_tflops, name_device
from results_file import ResultsFile
from step import profile_kernels
from torch import Tensor

from lorgnette.config import ProcessorSettings
from lorgnette.features.disk_cache import open_disk_cache
from lorgnette.features.image_features import Features, LazyTower
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import VisionTower, find_tower_class
from lorgnette.models.registry import VisionConfig, parse_configs
from lorgnette.planning.throughput import count_tower_flops
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

CUDA = torch.device("cuda")
BATCH_SIZES = (16, 41, 64, 82, 128)
PROFILED = 41
"""Images of the call whose kernels are listed."""
PART_SECONDS = 30
"""Seconds that must be left for each part after the rates."""


def make_grids(config: VisionConfig, count: int) -> list[ImageGrid]:
    side = round(280 / (config.patch_size * config.merge_size)) * config.merge_size
    return [ImageGrid(Image(Path(str(i))), 1, side, side, config.merge_size) for i in range(count)]


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


def measure_rate(tower: Callable[..., Tensor], config: VisionConfig, count: int) -> dict[str, float]:
    grids, patches = make_call(config, count)
    with torch.no_grad():
        ms = time_ms(lambda: tower(grids, patches))
    return {
        "images": count,
        "ms": ms,
        "tflop_s": sum(count_tower_flops(config, grid) for grid in grids) / ms / 1e9,
        "features_s": 1000 * sum(grid.num_tokens for grid in grids) / ms,
    }


def make_call(config: VisionConfig, count: int) -> tuple[list[ImageGrid], Tensor]:
    grids = make_grids(config, count)
    rows = sum(grid.h * grid.w for grid in grids)
    return grids, torch.randn(rows, config.patch_dim, device=CUDA, dtype=torch.bfloat16)


def measure_tower(tower: VisionTower, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Rates, and the kernels of one call. write: called after every measurement."""
    figures: dict[str, Any] = {"gflop_per_image": count_tower_flops(tower.config, make_grids(tower.config, 1)[0]) / 1e9}
    figures["rates"] = []
    for count in BATCH_SIZES:
        figures["rates"].append(measure_rate(tower, tower.config, count))
        write(figures)
    call = make_call(tower.config, PROFILED)
    figures["kernels"] = profile_kernels(lambda step: tower(*call))
    write(figures)
    return figures


def build_tower(config: VisionConfig) -> VisionTower:
    """A tower with random weights."""
    tower_class = find_tower_class(config.model_type)
    weights, views = tower_class.allocate_weights(config, CUDA, torch.bfloat16)
    for weight in views.values():
        weight.normal_(0, 0.02)
    return tower_class(config, weights)


def measure_models(names: Sequence[str], results: ResultsFile) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for name in names:
        if results.fits(PART_SECONDS, name):
            _, config = parse_configs(MODELS[name])
            models[name] = measure_tower(
                build_tower(config), lambda figures, name=name: results.update(models=models | {name: figures})
            )
    return models


def measure_features(job: Path, checkpoint: BaseCheckpoint, tower: VisionTower) -> dict[str, Any]:
    """The job's images from JPEG to features: without a disk cache, with an empty one, with a full one."""
    os.environ["XDG_CACHE_HOME"] = str(job / "cache")
    shutil.rmtree(job / "cache", ignore_errors=True)
    side = make_grids(tower.config, 1)[0].h
    size = (tower.config.patch_size * side,) * 2
    image_processor = ImageProcessor.from_folder(checkpoint.folder, ProcessorSettings(image_size=size))
    grids = [
        ImageGrid(Image(path), 1, side, side, image_processor.merge_size) for path in sorted((job / "images").iterdir())
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


def measure_job(arguments: argparse.Namespace, results: ResultsFile) -> dict[str, Any]:
    checkpoint = BaseCheckpoint.from_folder(arguments.job / "model")
    tower_class = find_tower_class(checkpoint.family.model_type)
    figures: dict[str, Any] = {}
    torch.cuda.init()
    for name in ("weights_first_s", "weights_again_s"):
        with record_seconds(figures, name):
            tower = tower_class.from_checkpoint(checkpoint, CUDA, torch.bfloat16)
    figures["weights_gb"] = sum(tensor.nbytes for tensor in tower._weights.values()) / 1e9
    with record_seconds(figures, "first_call_s"):
        tower(*make_call(tower.config, 1))
    figures |= measure_tower(tower, lambda rates: results.update(figures=figures | rates))
    more: dict[str, Callable[[], Any]] = {"features": lambda: measure_features(arguments.job, checkpoint, tower)}
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
    parser.add_argument("job", type=Path, nargs="?")
    parser.add_argument("--models", type=lambda names: names.split(","))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    if (arguments.job is None) == (arguments.models is None):
        parser.error("give JOB or --models")
    results = ResultsFile(arguments.out, ["bench/tower.py"], name_device(), arguments.budget)
    results.update(matmul_tflop_s=measure_matmul_tflops())
    figures = measure_job(arguments, results) if arguments.models is None else measure_models(arguments.models, results)
    print(json.dumps(figures, indent=1))
