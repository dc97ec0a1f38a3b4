"""Compare the predicted peak memory (planning/memory.py) with the measured one, at settings that differ in every term.

    python bench/memory.py JOB --out results.json [--budget 300]

JOB is made by bench/job.py. Every setting starts with new weights and takes steps of the same examples until the fast
engine has captured them. Features are random, as in bench/step.py. The error is that of `peak_gib`, the allocated
bytes. `reserved_gib` is what torch's allocator held at that point, `reserved_two_shapes_gib` after steps of half the
examples as well. The file is written after every setting and lists the settings that the budget leaves out.
"""

import argparse
import gc
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import DEVICE, HAS_GPU, name_device, synchronize
from results_file import ResultsFile
from step import RandomFeatures, build_adapter_shape, get_feature_width, load_examples

from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import load_decoder
from lorgnette.engine.peft_engine import ReferenceEngine, add_adapter, load_base_model
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import parse_configs
from lorgnette.planning.memory import GIB, EngineName, Workload, predict_memory
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.processing.processor import Processor
from lorgnette.training.optimizer import Optimizer
from lorgnette.types import Encoded, PackedBatch

SETTINGS: tuple[tuple[EngineName, int, int, float, int], ...] = (
    ("fast", 2000, 64, 0.05, 0), ("fast", 8000, 16, 0.0, 0), ("fast", 8000, 64, 0.05, 28), ("fast", 4000, 16, 0.0, 14),
    ("reference", 2000, 64, 0.05, 0), ("reference", 4000, 64, 0.0, 0), ("reference", 8000, 16, 0.05, 0),
    ("fast", 8000, 64, 0.05, 0), ("fast", 2000, 64, 0.0, 0), ("fast", 4000, 16, 0.05, 0), ("fast", 2000, 64, 0.0, 28),
    ("fast", 1000, 64, 0.05, 0), ("fast", 8000, 64, 0.05, 14),
    ("reference", 1000, 64, 0.05, 0), ("reference", 2000, 16, 0.0, 0),
)  # fmt: skip
"""(engine, tokens per step, rank, dropout, recomputed layers). The first eight already differ in every term."""


def build_engine(job: Path, name: EngineName, lora: LoraSettings, recompute_layers: int) -> tuple[Any, RandomFeatures]:
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    features = RandomFeatures(get_feature_width(checkpoint))
    if name == "fast":
        shape = build_adapter_shape(checkpoint, lora)
        decoder, adapter = load_decoder(checkpoint, shape, DEVICE, torch.bfloat16), FlatLoraParams(shape, DEVICE)
        adapter.copy_from(FlatLoraParams.init_values(shape, 0))
        engine = FastEngine(decoder, adapter, features, dropout=lora.dropout, recompute_layers=recompute_layers)
        return engine, features
    model = add_adapter(load_base_model(checkpoint, DEVICE, torch.bfloat16), checkpoint.family, lora, seed=0)
    return ReferenceEngine(model, features), features


def measure(
    job: Path,
    encoded: Sequence[Encoded],
    name: EngineName,
    max_tokens: int,
    rank: int,
    dropout: float,
    recompute_layers: int,
) -> dict[str, Any]:
    gc.collect()
    if HAS_GPU:
        torch._C._cuda_clearCublasWorkspaces()  # of streams that no longer exist: a training has only its own
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    lora = LoraSettings(rank=rank, dropout=dropout)
    engine, features = build_engine(job, name, lora, recompute_layers)
    optimizer = Optimizer(engine.parameters, TrainSettings())
    lengths = [len(e.input_ids) - 2 for e in encoded]
    count = next((n for n in range(1, len(encoded)) if sum(lengths[:n]) >= max_tokens), len(encoded))
    [batch] = split_into_microbatches(encoded[:count], 2 * max_tokens, prefix_sharing=False)
    run_steps(engine, optimizer, batch)
    peak, reserved = measure_peak_bytes()
    [half_batch] = split_into_microbatches(encoded[: count // 2], 2 * max_tokens, prefix_sharing=False)
    run_steps(engine, optimizer, half_batch)
    _, vision = parse_configs(BaseCheckpoint.from_folder(job / "model").load_hf_config())
    workload = Workload(
        name, build_adapter_shape(BaseCheckpoint.from_folder(job / "model"), lora), vision, has_dropout=dropout > 0,
        tokens=len(batch.input_ids), labels=len(batch.targets), recompute_layers=recompute_layers,
        feature_tokens=features.num_tokens,
    )  # fmt: skip
    estimate = predict_memory(workload)
    return {
        "engine": name, "tokens": workload.tokens, "labels": workload.labels, "rank": rank, "dropout": dropout,
        "recompute_layers": recompute_layers, "peak_gib": peak / GIB, "predicted_gib": estimate.allocated_bytes / GIB,
        "error_percent": 100 * (estimate.allocated_bytes / peak - 1) if peak else 0.0,
        "peak_phase": estimate.peak_phase, "predicted_reserved_gib": estimate.peak_bytes / GIB,
        "items_gib": {item: size / GIB for item, size in estimate.peak_items.items()},
        "reserved_gib": reserved / GIB, "reserved_two_shapes_gib": measure_peak_bytes()[1] / GIB,
        "loss": engine.compute_loss(replace(batch, examples=())).item(),
    }  # fmt: skip


def measure_peak_bytes() -> tuple[int, int]:
    """Allocated and reserved; 0 without a GPU."""
    return (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if HAS_GPU else (0, 0)


def run_steps(engine: Any, optimizer: Optimizer, batch: PackedBatch) -> None:
    """Four steps: eager, captured, replayed twice."""
    for _ in range(4):
        optimizer.step(engine.backward(batch), 1e-4)
        engine.sync_weights()
    synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engine", nargs="*", default=["fast", "reference"], help="settings of these engines alone")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/memory.py"], name_device(), arguments.budget)
    processor = Processor.from_folder(arguments.job / "model", ProcessorSettings())
    encoded = [processor.encode(example) for example in load_examples(arguments.job)]
    runs: list[dict[str, Any]] = []
    longest = worst = 0.0
    for setting in (setting for setting in SETTINGS if setting[0] in arguments.engine):
        if not results.fits(longest, str(setting)):
            continue
        start = results.seconds_left
        try:
            runs.append(measure(arguments.job, encoded, *setting))
        except torch.OutOfMemoryError as error:
            failures = [*results.figures.get("did_not_fit", ()), {"setting": setting, "error": str(error)}]
            results.update(did_not_fit=failures)
            print(f"out of memory: {setting}", flush=True)
            continue
        longest = max(longest, start - results.seconds_left)
        assert math.isfinite(runs[-1]["loss"])
        print(json.dumps({k: v for k, v in runs[-1].items() if k != "items_gib"}), flush=True)
        worst = max(abs(run["error_percent"]) for run in runs)
        results.update(worst_percent=worst, runs=runs)
    print(f"{len(runs)} settings, error at most {worst:.1f} %")
