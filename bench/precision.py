"""Compare what half precision learns with fp32: losses of a training, the first step's gain, milliseconds per step.

    python bench/precision.py JOB --out results.json [--model FOLDER] [--steps 62] [--runs fp32,fast,fast-fp16]

JOB is made by bench/job.py, or is any folder with a captions.csv; --model replaces its JOB/model. All trainings have
the same examples in the same order, the same first adapter, image features of bf16 (fp16 for fp16) and no dropout:

    fp32             the reference engine in float32
    fast             the fast engine in bf16 (only on CUDA)
    reference        the reference engine in bf16, which adds the adapter's part before it rounds
    peft             the same without that: PEFT's own layers, as every trainer on them computes
    fast-fp16        the fast engine in fp16, with loss scaling
    reference-fp16   the reference engine in fp16, with loss scaling
    overflow         fast-fp16 with a loss scale so high that its first steps overflow

The gain of a step is what it takes off the loss of its own examples. The distance of a training is the mean over its
steps of |loss − fp32's loss|. The file is written after every training.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine import DEVICE, HAS_GPU, name_device, synchronize
from results_file import ResultsFile

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.engine import peft_engine
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import load_decoder
from lorgnette.features.image_features import Features, HfVisionTower, LazyTower
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.packing import pack
from lorgnette.processing.processor import Processor
from lorgnette.training.lr_schedule import compute_learning_rate
from lorgnette.training.optimizer import Optimizer
from lorgnette.types import Encoded, Example

LORA = LoraSettings(rank=64, alpha=16, dropout=0.0)
BATCH_SIZE = 16


def load_tower(checkpoint: BaseCheckpoint, dtype: torch.dtype) -> HfVisionTower:
    return HfVisionTower(peft_engine.load_base_model(checkpoint, DEVICE, dtype))


def build_fp32(checkpoint: BaseCheckpoint, features: Features) -> Any:
    return build_reference(checkpoint, features, torch.float32)


def build_reference(checkpoint: BaseCheckpoint, features: Features, dtype: torch.dtype = torch.bfloat16) -> Any:
    base = peft_engine.load_base_model(checkpoint, DEVICE, dtype)
    return peft_engine.ReferenceEngine(peft_engine.add_adapter(base, checkpoint.family, LORA, seed=0), features)


def build_peft(checkpoint: BaseCheckpoint, features: Features) -> Any:
    with patch.object(peft_engine, "add_before_rounding", lambda model: None):
        return build_reference(checkpoint, features)


def build_fast(checkpoint: BaseCheckpoint, features: Features, dtype: torch.dtype = torch.bfloat16) -> Any:
    shape = AdapterShape.from_settings(checkpoint.load_text_config(), LORA)
    adapter = FlatLoraParams(shape, DEVICE)
    adapter.copy_from(FlatLoraParams.init_values(shape, 0))
    decoder = load_decoder(checkpoint, shape, DEVICE, dtype)
    return FastEngine(decoder, adapter, features, dropout=0.0)


def build_overflow(checkpoint: BaseCheckpoint, features: Features) -> Any:
    engine = build_fast(checkpoint, features, torch.float16)
    engine.loss_scale.fill_(2.0**40)
    return engine


BUILDERS: dict[str, Callable[[BaseCheckpoint, Features], Any]] = {
    "fp32": build_fp32, "fast": build_fast, "reference": build_reference, "peft": build_peft,
    "fast-fp16": partial(build_fast, dtype=torch.float16),
    "reference-fp16": partial(build_reference, dtype=torch.float16), "overflow": build_overflow,
}  # fmt: skip


def train(engine: Any, encoded: list[Encoded], total_steps: int) -> dict[str, Any]:
    settings = TrainSettings(epochs=1, learning_rate=1e-4)
    optimizer = Optimizer(engine.parameters, settings, engine.loss_scale)
    losses, norms, seconds, gain = [], [], [], 0.0
    for step in range(total_steps):
        examples = [encoded[(step * BATCH_SIZE + k) % len(encoded)] for k in range(BATCH_SIZE)]
        batch = pack(examples, sum(example.num_labels for example in examples))
        synchronize()
        start = time.perf_counter()
        loss = engine.backward(batch)
        result = optimizer.step(loss, compute_learning_rate(step, total_steps, settings))
        engine.sync_weights()
        synchronize()
        seconds.append(time.perf_counter() - start)
        losses.append(result[0].item())
        norms.append(result[1].item())
        if step == 0:
            gain = losses[0] - engine.compute_loss(batch).item()
    return {
        "first_gain": gain,
        "losses": losses,
        "skipped_steps": sum(not math.isfinite(norm) for norm in norms),
        "loss_scale": None if engine.loss_scale is None else engine.loss_scale.item(),
        "ms_per_step": 1000 * statistics.median(seconds[total_steps // 4 :]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--model", type=Path, help="a checkpoint other than JOB/model")
    parser.add_argument("--side", type=int, default=280, help="pixels of an image's side")
    parser.add_argument("--steps", type=int, default=62)
    parser.add_argument("--runs", default=",".join(BUILDERS), help="names from above, in this order")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/precision.py"], name_device(), arguments.budget)
    checkpoint = BaseCheckpoint.from_folder(arguments.model or arguments.job / "model")
    processor = Processor.from_folder(checkpoint.folder, ProcessorSettings(image_size=(arguments.side, arguments.side)))
    rows = [row for row in data.read(arguments.job / "captions.csv", prompt="COCO Yes:") if isinstance(row, Example)]
    encoded = [processor.encode(example) for example in rows[: arguments.steps * BATCH_SIZE]]
    features: dict[torch.dtype, Features] = {}
    runs: dict[str, dict[str, Any]] = {}
    for name in arguments.runs.split(","):
        if name.startswith(("fast", "overflow")) and not HAS_GPU:
            continue
        if not results.fits(30 if runs else 0, name):
            continue
        dtype = torch.float16 if name in ("fast-fp16", "reference-fp16", "overflow") else torch.bfloat16
        if dtype not in features:
            tower = LazyTower(DEVICE, dtype, partial(load_tower, checkpoint, dtype))
            features[dtype] = Features(tower, processor.image_processor, is_live=False)
            features[dtype].prepare([grid for example in encoded for grid in example.grids])
            features[dtype].release_tower()
        if HAS_GPU:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        runs[name] = train(BUILDERS[name](checkpoint, features[dtype]), encoded, arguments.steps)
        if "fp32" in runs:
            pairs = zip(runs[name]["losses"], runs["fp32"]["losses"], strict=True)
            runs[name]["distance"] = statistics.mean(abs(loss - exact) for loss, exact in pairs)
        results.update(runs=runs)
        shown = {step: runs[name]["losses"][step - 1] for step in (1, 5, 20, 62) if step <= arguments.steps}
        print(name, json.dumps(shown | {k: v for k, v in runs[name].items() if k != "losses"}), flush=True)
