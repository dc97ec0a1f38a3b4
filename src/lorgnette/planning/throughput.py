"""How long a run takes, from its operations and a speed that is assumed: a plan, not a measurement. Needs no torch.

    4 FLOP a frozen and 6 a trained parameter and row: forward, the gradient of the input, that of the factors. The
    decoder's attention is below a hundredth of that at the lengths of captions and left out; the tower's is counted.

The assumptions are shares of a GPU's published dense bf16 peak. Where they come from stands with each; bench/LOG.md
holds what was measured.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lorgnette.models.qwen2_vl.config import VisionConfig
from lorgnette.planning.memory import EngineName, Workload, count_lora_params
from lorgnette.types import ImageGrid

GPU_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "L4": 121}
"""Published dense bf16 peaks, TFLOP/s (NVIDIA's data sheets)."""


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    """An engine's: shares of the peak in steps and in the tower, and what a pass takes besides, or at the least."""

    step_fraction: float
    tower_fraction: float
    microbatch_overhead_s: float
    min_microbatch_s: float


ENGINE_SPEEDS: dict[EngineName, EngineSpeed] = {
    # Aimed at: 55 % of the 797 TFLOP/s that one H200 multiplies at, and 350 TFLOP/s in the tower.
    "fast": EngineSpeed(0.44, 0.35, 0.005, 0.0),
    # One NVIDIA H200, torch 2.11: 211 TFLOP/s at 8.5k rows, 264 in the tower; 0.17 s however small, launches take that.
    "reference": EngineSpeed(0.21, 0.27, 0.0, 0.17),
}


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Seconds, and the TFLOP/s that were assumed."""

    steps_s: float
    features_s: float
    steps_tflops: float
    tower_tflops: float


def estimate_time(
    workload: Workload, gpu: str, *, tokens: int, labels: int, num_microbatches: int, grids: Iterable[ImageGrid]
) -> TimeEstimate:
    """Of all steps together: so many rows and labels in so many passes, and each distinct picture once (a tower that is
    open to training is run in every pass instead, which is not counted)."""
    pace, peak = ENGINE_SPEEDS[workload.engine], GPU_TFLOPS[gpu]
    steps, tower = pace.step_fraction * peak, pace.tower_fraction * peak
    seconds = (
        tokens * count_token_flops(workload) + labels * 4 * workload.text.vocab_size * workload.text.hidden_size
    ) / (steps * 1e12)
    features = sum(count_tower_flops(workload.vision, grid) for grid in grids) / (tower * 1e12)
    return TimeEstimate(
        max(seconds + num_microbatches * pace.microbatch_overhead_s, num_microbatches * pace.min_microbatch_s),
        features,
        steps,
        tower,
    )


def count_token_flops(workload: Workload) -> int:
    """Of one row through forward and backward; layers that are run twice have a second forward pass."""
    frozen = sum(
        math.prod(size) for name, size in workload.text.list_weight_shapes().items() if name.endswith("_proj.weight")
    )
    trained = count_lora_params(workload)
    return 4 * frozen + 6 * trained + 2 * (frozen + trained) * workload.recompute_layers // workload.text.num_layers


def count_tower_flops(vision: VisionConfig, grid: ImageGrid) -> int:
    """Of one picture: every weight once a patch, the merger's once a token, attention among the patches."""
    blocks = merger = 0
    for name, size in vision.list_weight_shapes().items():
        count = math.prod(size) if len(size) > 1 else 0
        blocks, merger = (blocks, merger + count) if ".merger." in name else (blocks + count, merger)
    frame = grid.h * grid.w
    attention = 4 * vision.embed_dim * vision.depth * frame**2 * grid.t
    return 2 * blocks * frame * grid.t + 2 * merger * grid.num_tokens + attention
