"""Time optimizer steps of the fast engine at 2B's shapes: what a step takes, where its time goes, what it needs.

    python bench/step.py JOB --out results.json [--budget 300]

JOB is bench/job.py's. The pictures' features are random numbers: the tower is not measured here. Figures are medians
of steps after the pass's recording. Model FLOPs are 4 a frozen and 6 a trained parameter of the language model, without
attention: by row that is computed, and by token that is trained on, of which some share rows. The file is written
after every setting; what the budget of seconds cuts off is named in it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ceiling import matmul_tflops
from kept import Kept, device_name

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.engine.fast import FastEngine
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.processing.processor import Processor
from lorgnette.training.optimizer import Optimizer
from lorgnette.types import Encoded, ImageGrid

DEVICE = torch.device("cuda")


class Drawn:
    """Random features, the same for a picture every time."""

    def __init__(self, width: int) -> None:
        self._kept: dict[ImageGrid, torch.Tensor] = {}
        self._width = width

    def of(self, grids: Sequence[ImageGrid]) -> torch.Tensor:
        for grid in grids:
            if grid not in self._kept:
                self._kept[grid] = torch.randn(grid.num_tokens, self._width, dtype=torch.bfloat16, device=DEVICE)
        return torch.cat([self._kept[grid] for grid in grids])


class Steps:
    """An engine on the job's examples, its optimizer, and the steps it has taken."""

    def __init__(self, job: Path, encoded: list[Encoded], samples: int, lora: LoraSettings) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        checkpoint = BaseCheckpoint.from_folder(job / "model")
        text = TextConfig.from_hf_config(load_hf_config(checkpoint))
        shape = AdapterShape(text, lora.target_modules, lora.rank, lora.alpha / lora.rank)
        begun = time.perf_counter()
        self.decoder = load_decoder(checkpoint, shape, DEVICE, torch.bfloat16)
        torch.cuda.synchronize()
        self.weights_s = time.perf_counter() - begun
        self.adapter = FlatLoraParams(shape, DEVICE)
        self.adapter.copy_from(FlatLoraParams.init_values(shape, 0))
        drawn: Any = Drawn(text.hidden_size)
        self.engine = FastEngine(self.decoder, self.adapter, drawn, dropout=lora.dropout, seed=0)
        self.optimizer = Optimizer(self.engine.parameters, TrainSettings())
        self.encoded, self.samples = encoded, samples
        self.rows: list[int] = []
        self.tokens: list[int] = []

    def take(self, i: int) -> torch.Tensor:
        chosen = [self.encoded[(i * self.samples + k) % len(self.encoded)] for k in range(self.samples)]
        batches = split_into_microbatches(chosen, 16384, prefix_sharing=self.engine.prefix_sharing)
        self.rows.append(sum(len(batch.input_ids) for batch in batches))
        self.tokens.append(sum(len(split_into_microbatches([e], 1)[0].input_ids) for e in chosen))
        loss = torch.stack([self.engine.backward(batch, i) for batch in batches]).sum()
        made = self.optimizer.step(loss, 1e-4)
        self.engine.sync_weights()
        return made

    def alone(self, count: int) -> list[float]:
        """Seconds of steps that nothing overlaps with."""
        seconds = []
        for i in range(count):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            self.take(i)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
        return seconds

    def running(self, count: int) -> float:
        """Seconds a step, one behind the other, as in a training."""
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for i in range(count):
            self.take(i)
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / count


def measured(job: Path, encoded: list[Encoded], samples: int, lora: LoraSettings, limit: float) -> dict[str, Any]:
    steps = Steps(job, encoded, samples, lora)
    seconds = steps.alone(24)
    torch.cuda.set_sync_debug_mode("error")
    steps.take(0)
    torch.cuda.set_sync_debug_mode("default")
    running = steps.running(20)
    frozen = sum(linear.weight.shape[0] * linear.in_features for linear in steps.decoder.linears)
    flop = (4 * frozen + 6 * steps.adapter.values.numel()) / running / 1e12
    rows, tokens = statistics.mean(steps.rows), statistics.mean(steps.tokens)
    return {
        "samples": samples, "dropout": lora.dropout, "rank": lora.rank, "rows": rows, "tokens": tokens,
        "weights_s": steps.weights_s, "first_steps_s": seconds[:4], "ms_per_step": 1000 * running,
        "ms_per_step_alone": 1000 * statistics.median(seconds[12:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "share_of_ceiling_by_rows": flop * rows / limit, "share_of_ceiling_by_tokens": flop * tokens / limit,
        "kernels": profiled(steps.take),
    }  # fmt: skip


def profiled(step: Any) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step(0)
        torch.cuda.synchronize()
    totals: dict[str, list[float]] = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            row = totals.setdefault(event.name[:90], [0.0, 0])
            row[0] += event.device_time / 1000
            row[1] += 1
    top = sorted(((ms, int(count), name) for name, (ms, count) in totals.items()), reverse=True)
    return {"busy_ms": sum(row[0] for row in top), "count": sum(row[1] for row in top), "top": top[:30]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, nargs="*", default=[16, 62])
    parser.add_argument("--dropout", type=float, nargs="*", default=[0.05, 0.0])
    parser.add_argument("--budget", type=float, default=300, help="seconds everything may take")
    given = parser.parse_args()
    kept = Kept(given.out, ["bench/step.py"], device_name(), given.budget)
    encoder = Processor.from_folder(given.job / "model", ProcessorSettings())
    encoded = [encoder.encode(row) for row in data.read(given.job / "captions.csv")]  # type: ignore[arg-type]
    limit = matmul_tflops()
    kept.keep(ceiling_tflops=limit)
    found: list[dict[str, Any]] = []
    took = 0.0
    for samples, dropout in product(given.samples, given.dropout):
        if not kept.fits(took, f"{samples} samples at dropout {dropout}"):
            continue
        begun = kept.left
        found.append(measured(given.job, encoded, samples, LoraSettings(dropout=dropout), limit))
        took = max(took, begun - kept.left)
        kept.keep(runs=found)
        print(json.dumps({k: v for k, v in found[-1].items() if k != "kernels"}), flush=True)
        for row in found[-1]["kernels"]["top"][:22]:
            print("   ", *row)
        print("    busy", found[-1]["kernels"]["busy_ms"], found[-1]["kernels"]["count"])
