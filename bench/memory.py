"""Hold the predicted peak memory (model/memory.py) against the measured one, at settings that differ in every term.

    python bench/memory.py JOB --out results.json [--budget 300]

JOB is bench/job.py's. Every setting starts afresh: its weights are read, and steps of the same samples are taken until
the fast engine has recorded them. Features are random numbers, as in bench/step.py. `reserved_gib` is what torch's
allocator held at that point, `reserved_two_rooms_gib` what it held after steps of half the samples as well: the error
is of `peak_gib`, what was allocated. The file is written after every setting; what the budget of seconds cuts off is
named in it.
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
from kept import Kept, device_name
from step import DEVICE, Drawn

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.engine.fast import FastEngine
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, load_hf_config
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
"""(engine, rows a step, rank, dropout, layers run twice): the first eight differ in everything already."""


def built(job: Path, name: EngineName, lora: LoraSettings, again: int) -> tuple[Any, Drawn]:
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    text = TextConfig.from_hf_config(load_hf_config(checkpoint))
    features: Any = Drawn(text.hidden_size)
    if name == "fast":
        shape = AdapterShape(text, lora.target_modules, lora.rank, lora.alpha / lora.rank)
        decoder, adapter = load_decoder(checkpoint, shape, DEVICE, torch.bfloat16), FlatLoraParams(shape, DEVICE)
        adapter.copy_from(FlatLoraParams.init_values(shape, 0))
        return FastEngine(decoder, adapter, features, dropout=lora.dropout, seed=0, recompute_layers=again), features
    from lorgnette.engine import hf_loading
    from lorgnette.engine import peft_adapter as adapters
    from lorgnette.engine.peft_engine import ReferenceEngine

    base = hf_loading.load_base_model(checkpoint, DEVICE, torch.bfloat16)
    return ReferenceEngine(adapters.add_adapter(base, checkpoint.family, lora, seed=0), features), features


def measured(
    job: Path, encoded: Sequence[Encoded], name: EngineName, rows: int, rank: int, dropout: float, again: int
) -> dict[str, Any]:
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # of streams that are gone: a training has its own alone
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    lora = LoraSettings(rank=rank, dropout=dropout)
    engine, features = built(job, name, lora, again)
    optimizer = Optimizer(engine.parameters, TrainSettings())
    count = next(n for n in range(1, len(encoded)) if sum(len(e.input_ids) - 2 for e in encoded[:n]) >= rows)
    [batch] = split_into_microbatches(encoded[:count], 2 * rows, prefix_sharing=False)
    steps(engine, optimizer, batch)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    [half] = split_into_microbatches(encoded[: count // 2], 2 * rows, prefix_sharing=False)
    steps(engine, optimizer, half)
    config = load_hf_config(BaseCheckpoint.from_folder(job / "model"))
    work = Workload(
        name, TextConfig.from_hf_config(config), VisionConfig.from_hf_config(config), lora.target_modules, rank, has_dropout=dropout > 0,
        tokens=len(batch.input_ids), labels=len(batch.targets), recompute_layers=again,
        feature_tokens=sum(map(len, features._kept.values())),
    )  # fmt: skip
    said = predict_memory(work)
    return {
        "engine": name, "rows": work.tokens, "labels": work.labels, "rank": rank, "dropout": dropout, "again": again,
        "peak_gib": peak / GIB, "predicted_gib": said.peak_bytes / GIB, "error_percent": 100 * (said.peak_bytes / peak - 1),
        "fullest": said.peak_phase, "items_gib": {item: size / GIB for item, size in said.peak_items.items()},
        "reserved_gib": reserved / GIB, "reserved_two_rooms_gib": torch.cuda.max_memory_reserved() / GIB,
        "loss": engine.loss(replace(batch, examples=())).item(),
    }  # fmt: skip


def steps(engine: Any, optimizer: Optimizer, batch: PackedBatch) -> None:
    """Four: as it comes, while it is recorded, played back twice."""
    for draw in range(4):
        optimizer.step(engine.backward(batch, draw), 1e-4)
        engine.updated()
    torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300, help="seconds everything may take")
    given = parser.parse_args()
    kept = Kept(given.out, ["bench/memory.py"], device_name(), given.budget)
    encoder = Processor.from_folder(given.job / "model", ProcessorSettings())
    encoded = [encoder.encode(row) for row in data.read(given.job / "captions.csv")]  # type: ignore[arg-type]
    found: list[dict[str, Any]] = []
    took = 0.0
    for setting in SETTINGS:
        if not kept.fits(took, str(setting)):
            continue
        begun = kept.left
        try:
            found.append(measured(given.job, encoded, *setting))
        except torch.OutOfMemoryError as error:
            kept.keep(did_not_fit=[*kept.found.get("did_not_fit", ()), {"setting": setting, "said": str(error)}])
            print(f"out of memory: {setting}", flush=True)
            continue
        took = max(took, begun - kept.left)
        assert math.isfinite(found[-1]["loss"])
        print(json.dumps({k: v for k, v in found[-1].items() if k != "items_gib"}), flush=True)
        worst = max(abs(run["error_percent"]) for run in found)
        kept.keep(worst_percent=worst, runs=found)
    print(f"{len(found)} settings, at most {worst:.1f} % off")
