"""Time the trainer's steps as one of several ranks, with random weights and features. Started by bench/gpus.py.

    torchrun … bench/with_own_card.py bench/gpu_steps.py WORK --out FILE [--parts steps,shards]

WORK has a folder for each model, made by bench/nf4.py's `make_job`. Rank 0 writes the figures after every measurement.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from families import LORA, SIDE
from machine import DEVICE, HAS_GPU, synchronize
from step import RandomFeatures, build_adapter_shape, get_feature_width, load_examples

from lorgnette.config import ProcessorSettings, TrainSettings
from lorgnette.distributed import World, join_world, leave_world
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.loading import NO_MODULES, allocate_decoder
from lorgnette.io.atomic import write_json
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import Decoder
from lorgnette.processing.processor import Processor
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.trainer import StepReport, Trainer

STEPS = (("Qwen2-VL-2B", 64), ("Qwen2-VL-7B", 64))
"""Models, and samples of a step of all ranks."""
SHARDED_MODEL, SHARDED_TOKENS = "Qwen2-VL-7B", (2048, 8192)
"""Tokens for each GPU in a step."""
MODELS = sorted({SHARDED_MODEL, *(name for name, _ in STEPS)})
NUM_WARMUP_STEPS, NUM_STEPS, NUM_REDUCES = 8, 16, 10


class Recorder:
    """The trainer's callbacks: keeps its reports."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def on_log(self, report: StepReport) -> None:
        self.reports.append(report)

    def should_stop(self) -> bool:
        return False

    def on_step_end(self, step: int, loss: float) -> None: ...
    def on_evaluate(self, step: int, loss: float) -> float:
        return loss

    def on_new_best(self, step: int) -> None: ...
    def on_save(self, step: int, state: dict[str, Any]) -> None: ...
    def on_skipped_step(self, step: int, loss_scale: float) -> None: ...
    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None: ...


def make_decoder(checkpoint: BaseCheckpoint, shape: AdapterShape, shard_over: World | None) -> Decoder:
    """Random weights. shard_over: the ranks that have some rows of each layer's matrices."""
    decoder, weights = allocate_decoder(shape, DEVICE, torch.bfloat16, NO_MODULES, shard_over)
    for name, weight in weights.items():
        values = weight if isinstance(weight, torch.Tensor) else weight.rows  # type: ignore[union-attr]
        if values.ndim > 1:
            values.normal_(0, 0.02)
        else:
            values.fill_(name.endswith("weight"))
    return decoder


def measure(
    folder: Path, world: World, *, samples: int = 0, tokens: int = 0, is_sharded: bool = False
) -> dict[str, Any]:
    """Train for some steps. samples: of a step; tokens: for each rank instead."""
    gc.collect()
    if HAS_GPU:
        torch._C._cuda_clearCublasWorkspaces()  # of streams that no longer exist
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    # As many examples as all steps need, so that none is smaller.
    processor = Processor.from_folder(folder / "model", ProcessorSettings(image_size=(SIDE, SIDE)))
    encoded = [processor.encode(example) for example in load_examples(folder)]
    samples = samples or round(tokens * world.size / statistics.mean(len(example.input_ids) for example in encoded))
    num_steps = NUM_WARMUP_STEPS + NUM_STEPS
    examples = (encoded * (samples * num_steps // len(encoded) + 1))[: samples * num_steps]
    settings = TrainSettings(batch_size=samples, epochs=1, logging_steps=1, save_steps=num_steps + 1)
    sampler, max_tokens = BatchSampler(examples, settings, 0, group_by_image=False), settings.max_tokens_per_microbatch

    # The model, and the graph of all steps.
    checkpoint = BaseCheckpoint.from_folder(folder / "model", needs_weights=False)
    shape = build_adapter_shape(checkpoint, LORA)
    torch.manual_seed(0)
    decoder = make_decoder(checkpoint, shape, world if is_sharded else None)
    if decoder.shards is not None:
        decoder.shards.connect()
    adapter = FlatLoraParams(shape, DEVICE)
    adapter.copy_from(FlatLoraParams.init_values(shape, 0))
    engine = FastEngine(decoder, adapter, RandomFeatures(get_feature_width(checkpoint)), dropout=LORA.dropout)
    options: dict[str, Any] = {"prefix_sharing": engine.prefix_sharing, "num_ranks": world.size}
    engine.sync_weights()
    if HAS_GPU and (engine.shards is None or not engine.shards.is_collective):
        first = sampler.pack_first_steps(4096, max_tokens, **options)
        engine.warmup(first)
        engine.capture_ahead(first)

    recorder = Recorder()
    Trainer(engine, sampler, [], settings, max_tokens, world).train(recorder)
    all_reduce_ms = time_all_reduce(engine.flat_grad, world)
    steady = recorder.reports[NUM_WARMUP_STEPS:]
    seconds = statistics.median(report.seconds for report in steady)
    free, total = torch.cuda.mem_get_info() if HAS_GPU else (0, 0)
    reserved = torch.cuda.memory_reserved() if HAS_GPU else 0
    return {
        "model": folder.name, "gpus": world.size, "samples": samples, "is_sharded": is_sharded,
        "copies_rows": engine.shards is not None and not engine.shards.is_collective, "steps": len(steady),
        "tokens_per_gpu": round(statistics.mean(r.tokens_per_s * r.seconds for r in steady) / world.size),
        "ms_per_step": 1000 * seconds, "slowest_ms": 1000 * max(report.seconds for report in steady),
        "samples_per_s": samples / seconds, "all_reduce_ms": all_reduce_ms,
        "imbalance": statistics.mean(report.imbalance for report in steady),
        "data_wait": statistics.mean(report.data_wait for report in steady), "loss": recorder.reports[-1].loss,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if HAS_GPU else None,
        "outside_torch_gib": (total - free - reserved) / 2**30 if HAS_GPU else None,
    }  # fmt: skip


def time_all_reduce(vector: torch.Tensor, world: World) -> float | None:
    """Milliseconds of the sum of a gradient over all ranks; None for one."""
    if world.size == 1:
        return None
    start = 0.0
    for n in range(2 * NUM_REDUCES):
        if n == NUM_REDUCES:
            synchronize()
            start = time.perf_counter()
        world.all_reduce(vector)
    synchronize()
    return 1000 * (time.perf_counter() - start) / NUM_REDUCES


def measure_all(work: Path, out: Path, parts: list[str], *, tiny: bool) -> None:
    world, measured = join_world("cuda" if HAS_GPU else "cpu"), list[dict[str, Any]]()

    def keep(figures: dict[str, Any]) -> None:
        if world.is_main:
            measured.append(figures)
            print(json.dumps(figures), flush=True)
            write_json(out, {"measured": measured})

    def measure_steps() -> None:
        for name, samples in [(STEPS[0][0], 4)] if tiny else STEPS:
            if world.is_main:
                keep(measure(work / name, World(), samples=samples))
            world.barrier()
            keep(measure(work / name, world, samples=samples))

    def measure_shards() -> None:
        for tokens in [200] if tiny else SHARDED_TOKENS:
            for is_sharded in (False, True):
                keep(measure(work / SHARDED_MODEL, world, tokens=tokens, is_sharded=is_sharded))

    for part in parts:
        {"steps": measure_steps, "shards": measure_shards}[part]()
    leave_world(world)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["steps", "shards"])
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    measure_all(arguments.work, arguments.out, arguments.parts, tiny=arguments.tiny)
