"""Estimates what several GPUs gain in a step, and from which size of a step on they pay. Needs no torch.

    step on n GPUs = compute(tokens / n) + all-reduce of the gradient

    compute(t)  = (t + 250) tokens, but at least 0.6 ms for each layer: few tokens fill a GPU badly
    all-reduce  = 2 (n − 1) / n · 4 bytes per trained parameter / bandwidth, as of a ring

The constants are fitted to steps of Qwen2-VL-2B and 7B, of 561 to 36,000 tokens on one, two and four NVIDIA H100 or
H200, and to the all-reduces of their gradients, with NVLink.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

from lorgnette.planning.gpus import Gpu
from lorgnette.planning.memory import Workload
from lorgnette.planning.throughput import ENGINE_SPEEDS, count_token_flops

PAYING_SHARE = 0.8
"""Of what a GPU does alone: with less, another GPU does not pay."""
_LAYER_SECONDS, _STEP_TOKENS = 0.6e-3, 250
_MOST_TOKENS = 1 << 18
_NEARLY = 0.95  # steps of as many examples differ in their tokens
_MOST_GROWTH = 16
"""Of a step that is advised."""


@dataclass(frozen=True, slots=True)
class ParallelEstimate:
    """num_gpus in one step. tokens: of a step, on each; all_reduce_s: of a step, within it.

    speedup: of steps, over one GPU. paying_tokens: with how many on each GPU all do at least PAYING_SHARE of what one
    alone does; None if with no number.
    """

    num_gpus: int
    tokens: int
    speedup: float
    all_reduce_s: float
    paying_tokens: int | None

    @property
    def pays(self) -> bool:
        return self.paying_tokens is not None and self.tokens >= _NEARLY * self.paying_tokens

    def describe(self, seconds_alone: float, batch_size: int) -> list[str]:
        """What they gain, and if they do not pay, with how many examples in a step they would.

        seconds_alone: of all steps on one GPU; batch_size: examples of a step.
        """
        saved = format_duration(seconds_alone * (1 - 1 / self.speedup)) if self.speedup > 1 else "0 s"
        faster = f"{self.speedup:.1f} times as fast as one, which saves {saved} in all (estimated)"
        lines = [f"{self.num_gpus} GPUs with {self.tokens} tokens each in a step are {faster}"]
        if self.pays:
            return lines
        if self.paying_tokens is None:
            return [*lines, "the link between these GPUs is too slow for more"]
        enough = math.ceil(batch_size * self.paying_tokens / self.tokens / self.num_gpus) * self.num_gpus
        if enough > _MOST_GROWTH * batch_size:
            return [*lines, "this model is too small to use them well"]
        least = int(float(f"{self.paying_tokens:.2g}"))
        advice = f"they are used well from about {least} tokens each on: train.batch_size={enough}"
        return [*lines, f"{advice}, which is another training, of fewer and larger steps"]


def format_duration(seconds: float) -> str:
    """Such as "8.9 s" or "12 min"."""
    if seconds < 120:
        return "less than 0.1 s" if seconds < 0.1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate_parallel(workload: Workload, gpu: Gpu, tokens_per_step: int, num_gpus: int) -> ParallelEstimate:
    """tokens_per_step: of the whole step, on all GPUs. Raises ValueError for a GPU whose speed is not known."""
    all_reduce_s = _compute_all_reduce_seconds(workload, gpu, num_gpus)

    def compute_speedup(tokens: int) -> float:
        """tokens: on each GPU."""
        alone = _compute_step_seconds(workload, gpu, num_gpus * tokens)
        return alone / (_compute_step_seconds(workload, gpu, tokens) + all_reduce_s)

    def is_paying(tokens: int) -> bool:
        return compute_speedup(tokens) >= PAYING_SHARE * num_gpus

    paying = bisect_left(range(_MOST_TOKENS), True, key=is_paying)  # what is gained grows with the tokens
    tokens = -(-tokens_per_step // num_gpus)
    speedup = compute_speedup(tokens)
    return ParallelEstimate(num_gpus, tokens, speedup, all_reduce_s, paying if paying < _MOST_TOKENS else None)


def _compute_step_seconds(workload: Workload, gpu: Gpu, tokens: int) -> float:
    speed = ENGINE_SPEEDS[workload.engine]
    if gpu.tflops is None:
        raise ValueError(f"the speed of {gpu.name} is not known")
    of_token = count_token_flops(workload) / (speed.step_fraction * gpu.tflops * 1e12)
    least = speed.min_microbatch_s or _LAYER_SECONDS * workload.text.num_layers
    return max(least, (tokens + _STEP_TOKENS) * of_token)


def _compute_all_reduce_seconds(workload: Workload, gpu: Gpu, num_gpus: int) -> float:
    return 2 * (num_gpus - 1) / num_gpus * 4 * workload.adapter.num_params / gpu.link_bytes_per_s
