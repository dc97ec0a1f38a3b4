"""Time optimizer steps of the fast engine: milliseconds, kernels, and memory.

    python bench/step.py JOB --out results.json [--budget 300]

JOB is made by bench/job.py. The images' features are random: the vision tower is not measured here. Figures are medians
of steps after the capture of the CUDA graph. Model FLOPs are 4 per frozen and 6 per trained parameter of the language
model, without attention: once for the tokens that are computed, once for the tokens of all examples, some of which
share computed tokens. Counted by operations, attention and the output layer are in the sum too: they are a larger part
of a small model. The file is written after every setting and lists the settings that the budget leaves out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from machine import DEVICE, HAS_GPU, measure_matmul_tflops, name_device, synchronize
from results_file import ResultsFile

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import load_decoder
from lorgnette.features.image_features import Features
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import Decoder
from lorgnette.models.registry import parse_configs
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.processing.processor import Processor
from lorgnette.training.optimizer import Optimizer
from lorgnette.types import Encoded, Example, ImageGrid

MAX_TOKENS = 16384


class RandomFeatures(Features):
    """Random features, always the same for an image, instead of a vision tower's."""

    def __init__(self, width: int) -> None:  # a Features in its type only
        self._by_grid: dict[ImageGrid, torch.Tensor] = {}
        self._width = width

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self._by_grid.values()))

    def gather(self, grids: Sequence[ImageGrid]) -> torch.Tensor:
        for grid in grids:
            if grid not in self._by_grid:
                self._by_grid[grid] = torch.randn(grid.num_tokens, self._width, dtype=torch.bfloat16, device=DEVICE)
        return torch.cat([self._by_grid[grid] for grid in grids])


def load_examples(job: Path) -> list[Example]:
    return [row for row in data.read(job / "captions.csv", prompt="COCO Yes:") if isinstance(row, Example)]


def get_feature_width(checkpoint: BaseCheckpoint) -> int:
    return parse_configs(checkpoint.load_hf_config())[1].feature_width


def build_adapter_shape(checkpoint: BaseCheckpoint, lora: LoraSettings) -> AdapterShape:
    return AdapterShape.from_settings(checkpoint.load_text_config(), lora)


class StepTimer:
    """An engine on the job's examples, its optimizer, and the tokens of its steps."""

    def __init__(
        self,
        job: Path,
        encoded: list[Encoded],
        batch_size: int,
        lora: LoraSettings,
        *,
        decoder: Decoder | None = None,
        recompute_layers: int = 0,
    ) -> None:
        """decoder: None loads the job's."""
        if HAS_GPU and decoder is None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        checkpoint = BaseCheckpoint.from_folder(job / "model", needs_weights=decoder is None)
        shape = build_adapter_shape(checkpoint, lora)
        start = time.perf_counter()
        self.decoder = load_decoder(checkpoint, shape, DEVICE, torch.bfloat16) if decoder is None else decoder
        synchronize()
        self.weights_seconds = time.perf_counter() - start
        self.adapter = FlatLoraParams(shape, DEVICE)
        self.adapter.copy_from(FlatLoraParams.init_values(shape, 0))
        features = RandomFeatures(get_feature_width(checkpoint))
        options: dict[str, Any] = {"dropout": lora.dropout, "recompute_layers": recompute_layers}
        self.engine = FastEngine(self.decoder, self.adapter, features, **options)
        self.optimizer = Optimizer(self.engine.parameters, TrainSettings())
        self.encoded, self.batch_size = encoded, batch_size
        self.num_computed_tokens: list[int] = []
        self.num_tokens: list[int] = []
        self.num_labels: list[int] = []
        self.num_pairs: list[float] = []

    def run_step(self, step: int) -> torch.Tensor:
        start = step * self.batch_size
        examples = [self.encoded[(start + k) % len(self.encoded)] for k in range(self.batch_size)]
        batches = split_into_microbatches(
            examples, MAX_TOKENS, prefix_sharing=self.engine.prefix_sharing, step_key=step
        )
        self.num_computed_tokens.append(sum(len(batch.input_ids) for batch in batches))
        self.num_tokens.append(sum(len(split_into_microbatches([e], 1)[0].input_ids) for e in examples))
        self.num_labels.append(sum(len(batch.targets) for batch in batches))
        self.num_pairs.append(sum(len(example.input_ids) ** 2 / 2 for example in examples))  # causal
        loss = torch.stack([self.engine.backward(batch) for batch in batches]).sum()
        loss_and_norm = self.optimizer.step(loss, 1e-4)
        self.engine.sync_weights()
        return loss_and_norm

    def time_separate_steps(self, count: int) -> list[float]:
        """Seconds of steps with a synchronization between them."""
        seconds = []
        for step in range(count):
            synchronize()
            start = time.perf_counter()
            self.run_step(step)
            synchronize()
            seconds.append(time.perf_counter() - start)
        return seconds

    def time_queued_steps(self, count: int) -> float:
        """Mean seconds of steps that are queued one after the other, as in a training."""
        synchronize()
        start = time.perf_counter()
        for step in range(count):
            self.run_step(step)
        synchronize()
        return (time.perf_counter() - start) / count


def measure(
    job: Path, encoded: list[Encoded], batch_size: int, lora: LoraSettings, ceiling: float | None
) -> dict[str, Any]:
    timer = StepTimer(job, encoded, batch_size, lora)
    seconds = timer.time_separate_steps(24)
    if HAS_GPU:  # a step must not wait for the device
        torch.cuda.set_sync_debug_mode("error")
        timer.run_step(0)
        torch.cuda.set_sync_debug_mode("default")
    queued = timer.time_queued_steps(20)
    frozen = sum(linear.weight.shape[0] * linear.in_features for linear in timer.decoder.linears)
    flop = (4 * frozen + 6 * timer.adapter.values.numel()) / queued / 1e12
    computed, tokens = statistics.mean(timer.num_computed_tokens), statistics.mean(timer.num_tokens)
    text = timer.decoder.config
    # Two products forward and five backward for attention; the output layer forward and its input's gradient.
    attention = 14 * text.num_layers * text.num_heads * text.head_dim * statistics.mean(timer.num_pairs)
    output = 4 * text.vocab_size * text.hidden_size * statistics.mean(timer.num_labels)
    operations = flop * computed + (attention + output) / queued / 1e12
    return {
        "samples": batch_size, "dropout": lora.dropout, "rank": lora.rank, "rows": computed, "tokens": tokens,
        "weights_s": timer.weights_seconds, "first_steps_s": seconds[:4], "ms_per_step": 1000 * queued,
        "ms_per_step_alone": 1000 * statistics.median(seconds[12:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if HAS_GPU else None,
        "share_of_ceiling_by_rows": flop * computed / ceiling if ceiling else None,
        "share_of_ceiling_by_tokens": flop * tokens / ceiling if ceiling else None,
        "share_of_ceiling_by_operations": operations / ceiling if ceiling else None,
        "kernels": profile_kernels(timer.run_step),
    }  # fmt: skip


def profile_kernels(run_step: Callable[[int], Any]) -> dict[str, Any]:
    """Milliseconds and launches by kernel of one step; empty without a GPU."""
    from torch.profiler import ProfilerActivity, profile

    if not HAS_GPU:
        return {"busy_ms": 0.0, "count": 0, "top": []}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run_step(0)
        synchronize()
    totals: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            total = totals.setdefault(event.name[:90], [0.0, 0])
            total[0] += event.device_time / 1000
            total[1] += 1
    top = sorted(((ms, int(count), name) for name, (ms, count) in totals.items()), reverse=True)
    return {"busy_ms": sum(row[0] for row in top), "count": sum(row[1] for row in top), "top": top[:30]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, nargs="*", default=[16, 62], help="examples per step")
    parser.add_argument("--dropout", type=float, nargs="*", default=[0.05, 0.0])
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/step.py"], name_device(), arguments.budget)
    processor = Processor.from_folder(arguments.job / "model", ProcessorSettings())
    encoded = [processor.encode(example) for example in load_examples(arguments.job)]
    ceiling = measure_matmul_tflops()
    results.update(ceiling_tflops=ceiling)
    runs: list[dict[str, Any]] = []
    longest = 0.0
    for batch_size, dropout in product(arguments.samples, arguments.dropout):
        if not results.fits(longest, f"{batch_size} samples at dropout {dropout}"):
            continue
        start = results.seconds_left
        runs.append(
            measure(arguments.job, encoded, batch_size, LoraSettings(rank=64, alpha=16, dropout=dropout), ceiling)
        )
        longest = max(longest, start - results.seconds_left)
        results.update(runs=runs)
        print(json.dumps({k: v for k, v in runs[-1].items() if k != "kernels"}), flush=True)
        for row in runs[-1]["kernels"]["top"][:22]:
            print("   ", *row)
        print("    busy", runs[-1]["kernels"]["busy_ms"], runs[-1]["kernels"]["count"])
