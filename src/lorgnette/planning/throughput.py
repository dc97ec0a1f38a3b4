"""Estimates how long a run takes, from its operations and an assumed speed. Needs no torch.

    4 FLOP per frozen and 6 per trained parameter and token: forward, input gradient, gradient of the factors. Attention
    is left out for the decoder, where it is below 1 % at the lengths of captions, and counted for the vision tower. The
    recurrence of linear attention is left out too.

The assumed speed is a share of a GPU's published dense bf16 peak; bench/LOG.md has the measurements. A CPU's speed is
measured: the one of a matrix product, which no training reaches.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lorgnette.models.registry import VisionConfig
from lorgnette.planning.memory import EngineName, Workload
from lorgnette.types import ImageGrid


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """Shares of the peak in steps and in the tower, and the overhead and the minimum time of a micro-batch."""

    step_fraction: float
    tower_fraction: float
    microbatch_overhead_s: float
    min_microbatch_s: float


ENGINE_SPEEDS: dict[EngineName, EngineSpeed] = {
    # Target: 55 % of the 797 TFLOP/s of one H200's matrix products, and 350 TFLOP/s in the tower.
    "fast": EngineSpeed(0.44, 0.35, 0.005, 0.0),
    # One H200, torch 2.11: 211 TFLOP/s at 8.5k tokens, 264 in the tower; launches alone take 0.17 s.
    "reference": EngineSpeed(0.21, 0.27, 0.0, 0.17),
}


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Seconds, and the assumed TFLOP/s."""

    steps_s: float
    features_s: float
    steps_tflops: float
    tower_tflops: float


def estimate_time(
    workload: Workload, peak_tflops: float, tokens: int, labels: int, num_microbatches: int, grids: Iterable[ImageGrid]
) -> TimeEstimate:
    """Time of all steps together, and of encoding each distinct image once.

    peak_tflops: of the GPU, published. A trained tower encodes every image in every step instead; that is not counted.
    """
    speed = ENGINE_SPEEDS[workload.engine]
    steps_tflops, tower_tflops = speed.step_fraction * peak_tflops, speed.tower_fraction * peak_tflops
    flops = count_step_flops(workload, tokens, labels)
    overhead, minimum = num_microbatches * speed.microbatch_overhead_s, num_microbatches * speed.min_microbatch_s
    steps_s = max(flops / (steps_tflops * 1e12) + overhead, minimum)
    features_s = sum(count_tower_flops(workload.vision, grid) for grid in grids) / (tower_tflops * 1e12)
    return TimeEstimate(steps_s, features_s, steps_tflops, tower_tflops)


def count_step_flops(workload: Workload, tokens: int, labels: int) -> int:
    """FLOP of steps with this many tokens and labels."""
    return tokens * count_token_flops(workload) + labels * 4 * workload.text.vocab_size * workload.text.hidden_size


def measure_matmul_gflops(size: int = 1024, repeats: int = 3) -> float:
    """GFLOP/s of this CPU's fp32 product of two square matrices: the best of some, in a tenth of a second."""
    matrix = np.ones((size, size), np.float32)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        np.matmul(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def count_token_flops(workload: Workload) -> int:
    """FLOP of one token through forward and backward; a recomputed layer has a second forward.

    Of experts, those that a token passes.
    """
    text, trained = workload.text, workload.adapter.num_params
    matrices = {name: math.prod(shape) for name, shape in text.list_weight_shapes().items() if len(shape) > 1}
    frozen = sum(count for name, count in matrices.items() if ".layers." in name)
    if text.experts:
        idle = text.experts.count - text.experts.num_active
        frozen -= sum(count for name, count in matrices.items() if ".experts." in name) * idle // text.experts.count
    recomputed = 2 * (frozen + trained) * workload.recompute_layers // text.num_layers
    return 4 * frozen + 6 * trained + recomputed


def count_tower_flops(vision: VisionConfig, grid: ImageGrid) -> int:
    """FLOP of one image: every block's weight per patch, the mergers' per token, and attention among the patches.

    Where the tower has windows, attention stays inside them in all but the blocks of full attention.
    """
    blocks = mergers = 0
    for name, size in vision.list_weight_shapes().items():
        count = math.prod(size) if len(size) > 1 and ".pos_embed." not in name else 0
        blocks, mergers = (blocks, mergers + count) if "merger" in name else (blocks + count, mergers)
    frame = grid.h * grid.w
    pairs = vision.depth * frame**2
    if vision.window_size:
        side = vision.window_size // (vision.patch_size * vision.merge_size) * vision.merge_size
        in_windows = math.prod(sum(min(side, n - i) ** 2 for i in range(0, n, side)) for n in (grid.h, grid.w))
        pairs += (vision.depth - len(vision.full_attention_blocks)) * (in_windows - frame**2)
    return 2 * blocks * frame * grid.t + 2 * mergers * grid.num_tokens + 4 * vision.embed_dim * pairs * grid.t
