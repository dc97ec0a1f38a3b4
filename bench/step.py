"""Time optimizer steps of the fast engine at 2B's shapes: what a step takes, where its time goes, what it needs.

    python bench/step.py JOB --out results.json

JOB is bench/job.py's. The pictures' features are random numbers: the tower is not measured here. Figures are medians
of device-synchronised steps after the pass's recording; model TFLOP/s count 4 FLOP a frozen and 6 a trained parameter
of the language model and row computed, without attention.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lorgnette import data
from lorgnette.config import Encode, Lora, Train
from lorgnette.encode.encoder import Encoder
from lorgnette.encode.pack import passes
from lorgnette.model.build import decoder_of
from lorgnette.model.checkpoint import Checkpoint
from lorgnette.model.fast import FastEngine
from lorgnette.model.flat import AdapterShape, FlatAdapter
from lorgnette.model.shapes import TextShape, config_of
from lorgnette.report.manifest import manifest
from lorgnette.train.optimizer import Optimizer
from lorgnette.types import Encoded, PictureGrid

DEVICE = torch.device("cuda")


class Drawn:
    """Random features, the same for a picture every time."""

    def __init__(self, width: int) -> None:
        self._kept: dict[PictureGrid, torch.Tensor] = {}
        self._width = width

    def of(self, grids: Sequence[PictureGrid]) -> torch.Tensor:
        for grid in grids:
            if grid not in self._kept:
                self._kept[grid] = torch.randn(grid.tokens, self._width, dtype=torch.bfloat16, device=DEVICE)
        return torch.cat([self._kept[grid] for grid in grids])


def ceiling() -> float:
    """bf16 matmul of 8192³, TFLOP/s."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    for _ in range(10):
        a @ b
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(50):
        a @ b
    ended.record()
    torch.cuda.synchronize()
    return 50 * 2 * 8192**3 / begun.elapsed_time(ended) / 1e9


def measured(job: Path, encoded: list[Encoded], samples: int, lora: Lora, steps: int, limit: float) -> dict[str, Any]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    checkpoint = Checkpoint.at(job / "model")
    text = TextShape.of(config_of(checkpoint))
    begun = time.perf_counter()
    shape = AdapterShape(text, lora.targets, lora.rank, lora.alpha / lora.rank)
    decoder = decoder_of(checkpoint, shape, DEVICE, torch.bfloat16)
    torch.cuda.synchronize()
    loaded = time.perf_counter()
    adapter = FlatAdapter(shape, DEVICE)
    adapter.take(FlatAdapter.drawn(shape, 0))
    torch.cuda.synchronize()
    attached = time.perf_counter()
    engine = FastEngine(decoder, adapter, Drawn(text.hidden), dropout=lora.dropout, seed=0)  # type: ignore[arg-type]
    optimizer = Optimizer(engine.parameters, Train())
    times, losses, rows = [], [], []

    def step(i: int) -> torch.Tensor:
        chosen = [encoded[(i * samples + k) % len(encoded)] for k in range(samples)]
        batches = passes(chosen, 16384, share=engine.share)
        rows.append(sum(len(batch.tokens) for batch in batches))
        loss = torch.stack([engine.backward(batch, i) for batch in batches]).sum()
        made = optimizer.step(loss, 1e-4)
        engine.updated()
        return made

    for i in range(steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        losses.append(step(i))
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    warm = times[steps // 2 :]
    torch.cuda.set_sync_debug_mode("error")
    step(steps)
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    started = time.perf_counter()
    for i in range(20):
        losses.append(step(i))
    issued = time.perf_counter() - started
    torch.cuda.synchronize()
    running = (time.perf_counter() - started) / 20
    tokens = statistics.mean(
        sum(len(e.tokens) - 2 for e in encoded[k : k + samples]) for k in range(0, samples * 4, samples)
    )
    frozen = sum(linear.weight.shape[0] * linear.inputs for linear in decoder.linears)
    flop = statistics.mean(rows) * (4 * frozen + 6 * adapter.values.numel())
    found = {
        "samples": samples, "dropout": lora.dropout, "rank": lora.rank, "rows": statistics.mean(rows), "tokens": tokens,
        "weights_s": loaded - begun, "adapter_s": attached - loaded, "first_steps_s": times[:4],
        "ms_per_step": 1000 * statistics.median(warm), "ms_per_step_running": 1000 * running,
        "host_ms_per_step": 1000 * issued / 20, "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "model_tflops": flop / running / 1e12, "share_of_ceiling": flop / running / 1e12 / limit,
        "recordings": sum(s.graph is not None for s in engine._stations.values()),
        "rooms": [list(map(str, (r.rows, r.segments, r.labels, r.longest))) for r in engine._stations],
        "loss": [losses[0].tolist(), losses[-1].tolist()],
    }  # fmt: skip
    found["kernels"] = profiled(step)
    return found


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
    given = parser.parse_args()
    encoder = Encoder.of_folder(given.job / "model", Encode())
    encoded = [encoder.encode(row) for row in data.read(given.job / "captions.csv")]  # type: ignore[arg-type]
    limit = ceiling()
    found = []
    for samples in given.samples:
        for dropout in given.dropout:
            found.append(measured(given.job, encoded, samples, Lora(dropout=dropout), 24, limit))
            print(json.dumps({k: v for k, v in found[-1].items() if k != "kernels"}))
            for row in found[-1]["kernels"]["top"][:22]:
                print("   ", *row)
            print("    busy", found[-1]["kernels"]["busy_ms"], found[-1]["kernels"]["count"])
    made = manifest(seed=0, command=["bench/step.py"], device=torch.cuda.get_device_name())
    given.out.write_text(json.dumps({"ceiling_tflops": limit, "runs": found, "made_with": made}, indent=1) + "\n")
