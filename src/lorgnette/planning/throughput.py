"""How long a run takes, from its operations and a speed that is assumed: a plan, not a measurement. Needs no torch.

    4 FLOP a frozen and 6 a trained parameter and row: forward, the gradient of the input, that of the factors. The
    decoder's attention is below a hundredth of that at the lengths of captions and left out; the tower's is counted.

The assumptions are shares of a GPU's published dense bf16 peak. Where they come from stands with each; bench/LOG.md
holds what was measured.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lorgnette.models.qwen2_vl.config import VisionShape
from lorgnette.planning.memory import EngineName, Work, factors
from lorgnette.types import PictureGrid

GPUS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165, "L4": 121}
"""Published dense bf16 peaks, TFLOP/s (NVIDIA's data sheets)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """An engine's: shares of the peak in steps and in the tower, and what a pass takes besides, or at the least."""

    steps: float
    tower: float
    pass_extra_s: float
    pass_least_s: float


PACES: dict[EngineName, Pace] = {
    # Aimed at: 55 % of the 797 TFLOP/s that one H200 multiplies at, and 350 TFLOP/s in the tower.
    "fast": Pace(0.44, 0.35, 0.005, 0.0),
    # One NVIDIA H200, torch 2.11: 211 TFLOP/s at 8.5k rows, 264 in the tower; 0.17 s however small, launches take that.
    "reference": Pace(0.21, 0.27, 0.0, 0.17),
}


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds, and the TFLOP/s that were assumed."""

    steps_s: float
    features_s: float
    steps_tflops: float
    tower_tflops: float


def expected(work: Work, gpu: str, *, rows: int, labels: int, passes: int, grids: Iterable[PictureGrid]) -> Time:
    """Of all steps together: so many rows and labels in so many passes, and each distinct picture once (a tower that is
    open to training is run in every pass instead, which is not counted)."""
    pace, peak = PACES[work.engine], GPUS[gpu]
    steps, tower = pace.steps * peak, pace.tower * peak
    seconds = (rows * row_flop(work) + labels * 4 * work.text.vocab * work.text.hidden) / (steps * 1e12)
    features = sum(tower_flop(work.vision, grid) for grid in grids) / (tower * 1e12)
    return Time(max(seconds + passes * pace.pass_extra_s, passes * pace.pass_least_s), features, steps, tower)


def row_flop(work: Work) -> int:
    """Of one row through forward and backward; layers that are run twice have a second forward pass."""
    frozen = sum(math.prod(size) for name, size in work.text.weights().items() if name.endswith("_proj.weight"))
    trained = factors(work)
    return 4 * frozen + 6 * trained + 2 * (frozen + trained) * work.again // work.text.layers


def tower_flop(vision: VisionShape, grid: PictureGrid) -> int:
    """Of one picture: every weight once a patch, the merger's once a token, attention among the patches."""
    blocks = merger = 0
    for name, size in vision.weights().items():
        count = math.prod(size) if len(size) > 1 else 0
        blocks, merger = (blocks, merger + count) if ".merger." in name else (blocks + count, merger)
    frame = grid.h * grid.w
    attention = 4 * vision.embed * vision.depth * frame**2 * grid.t
    return 2 * blocks * frame * grid.t + 2 * merger * grid.tokens + attention
