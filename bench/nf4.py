"""NF4 (QLoRA) in the fast engine: the kernel that dequantizes, steps beside bf16, memory with and without recompute.

    python bench/nf4.py WORK --out results.json [--models Qwen2-VL-2B,Qwen2-VL-7B] [--budget 200]

The kernel's rate counts the bytes it reads and writes, for every projection of a layer of the last model, and for a
pass over all its layers. Steps have 16 examples, the tutorial's, and as many as give LARGE_STEP tokens, without
recompute, in bf16 and in NF4, of the last model. Memory is the tutorial's step in NF4, with all layers recomputed and
with none, of every model; the features of 500 images are on the device. Weights and features are random, quantized
here; nothing of the models is on the disk. The file is written after every part.
--tiny: two small layers.
"""

import argparse
import gc
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import job
import torch
from families import LARGE_STEP, LORA, SIDE, SMALL_STEP
from machine import DEVICE, HAS_GPU, name_device, synchronize
from results_file import ResultsFile
from step import StepTimer, build_adapter_shape, load_examples

from lorgnette.config import ProcessorSettings
from lorgnette.engine.loading import NO_MODULES, allocate_decoder
from lorgnette.kernels.nf4 import Nf4Matrix, dequantize_nf4, quantize_absmax, quantize_nf4
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import Decoder
from lorgnette.models.quantization import QLORA, list_quantized_modules
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded

SECONDS_PER_PART = 20
NUM_WARMUP_STEPS, NUM_STEPS = 6, 16


def make_random_matrix(shape: tuple[int, int]) -> Nf4Matrix:
    matrix = Nf4Matrix.allocate(shape, DEVICE, is_nested=True)
    fill_matrix(matrix)
    return matrix


def fill_matrix(matrix: Nf4Matrix) -> None:
    absmax = torch.empty(len(matrix.absmax), device=DEVICE)
    values = torch.empty(matrix.shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, 0.02)
    quantize_nf4(values, matrix.packed, absmax)
    quantize_absmax(absmax, matrix)


def measure_kernel(checkpoint: BaseCheckpoint) -> dict[str, Any]:
    """TB/s of every projection, and of all of a layer one after the other, as a pass does."""
    text = checkpoint.load_text_config()
    matrices = {name: make_random_matrix(shape) for name, shape in text.linear_shapes.items()}
    columns = LORA.rank
    wide = {
        name: torch.empty(shape[0], shape[1] + columns, dtype=torch.bfloat16, device=DEVICE)
        for name, shape in text.linear_shapes.items()
    }

    def dequantize(names: list[str]) -> None:
        for name in names:
            dequantize_nf4(matrices[name], wide[name][:, :-columns])

    def count_bytes(name: str) -> int:
        matrix = matrices[name]
        return matrix.packed.nbytes + matrix.absmax.nbytes + 2 * math.prod(matrix.shape)

    rates: dict[str, Any] = {}
    for label, names in {**{name: [name] for name in matrices}, "layer": list(matrices)}.items():
        ms, size = time_ms(lambda names=names: dequantize(names)), sum(map(count_bytes, names))
        rates[label] = {"ms": ms, "tb_s": size / ms / 1e9}
    rates["model_ms"] = rates["layer"]["ms"] * text.num_layers
    return rates


def time_ms(run: Any) -> float:
    """Median of 30; not a number without a GPU."""
    run()
    if not HAS_GPU:
        return math.nan
    times = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def make_decoder(checkpoint: BaseCheckpoint, *, is_nf4: bool) -> Decoder:
    """Random weights at the model's shapes."""
    text = checkpoint.load_text_config()
    modules = dict.fromkeys(list_quantized_modules(QLORA, text.list_weight_shapes()), True) if is_nf4 else NO_MODULES
    decoder, weights = allocate_decoder(build_adapter_shape(checkpoint, LORA), DEVICE, torch.bfloat16, modules)
    for name, weight in weights.items():
        if isinstance(weight, Nf4Matrix):
            fill_matrix(weight)
        elif weight.ndim > 1:
            weight.normal_(0, 0.02)
        else:
            weight.fill_(name.endswith("weight"))
    return decoder


def measure_step(
    folder: Path, encoded: list[Encoded], count: int, *, is_nf4: bool, recompute_layers: int = 0
) -> dict[str, Any]:
    """Milliseconds of a step of `count` examples, and the peak of memory since before the weights."""
    gc.collect()
    if HAS_GPU:
        torch._C._cuda_clearCublasWorkspaces()  # of streams that no longer exist
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    decoder = make_decoder(BaseCheckpoint.from_folder(folder / "model", needs_weights=False), is_nf4=is_nf4)
    timer = StepTimer(folder, encoded, count, LORA, decoder=decoder, recompute_layers=recompute_layers)
    for example in encoded:
        timer.engine.features.gather(example.grids)
    timer.time_separate_steps(NUM_WARMUP_STEPS)
    seconds = timer.time_queued_steps(NUM_STEPS)
    synchronize()
    return {
        "weights": "nf4" if is_nf4 else "bf16", "samples": count, "rows": statistics.mean(timer.num_computed_tokens),
        "recompute_layers": recompute_layers, "ms_per_step": 1000 * seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if HAS_GPU else None,
    }  # fmt: skip


def measure_all(arguments: argparse.Namespace) -> None:
    results = ResultsFile(arguments.out, ["bench/nf4.py", *arguments.models], name_device(), arguments.budget)
    work: Path = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job.make_images(work, arguments.images)
    figures: dict[str, dict[str, Any]] = {}
    needed = 0 if arguments.tiny else SECONDS_PER_PART

    def measure(name: str, part: str, *options: Any, **settings: Any) -> None:
        if results.fits(needed, f"{name} {part}"):
            figures[name][part] = measure_step(*options, **settings)
            results.update(models=figures)
            print(name, part, json.dumps(figures[name][part]), flush=True)

    for name in arguments.models:
        folder, figures[name] = work / name, {}
        job.make_model(folder / "model", job.BUILT_IN, name, tiny=arguments.tiny, has_weights=False)
        for file in ("images", "captions.csv"):
            (folder / file).symlink_to(work / file)
        checkpoint = BaseCheckpoint.from_folder(folder / "model", needs_weights=False)
        processor = Processor.from_folder(folder / "model", ProcessorSettings(image_size=(SIDE, SIDE)))
        encoded = [processor.encode(example) for example in load_examples(folder)]
        num_layers = checkpoint.load_text_config().num_layers
        if name == arguments.models[-1]:
            figures[name]["kernel"] = measure_kernel(checkpoint)
            results.update(models=figures)
            print(name, "kernel", json.dumps(figures[name]["kernel"]), flush=True)
        small = 2 if arguments.tiny else SMALL_STEP
        measure(name, "recompute", folder, encoded, small, is_nf4=True, recompute_layers=num_layers)
        measure(name, "small_nf4", folder, encoded, small, is_nf4=True)
        if name != arguments.models[-1]:
            continue
        tokens = statistics.mean(len(example.input_ids) for example in encoded)
        large = math.ceil((300 if arguments.tiny else LARGE_STEP) / tokens)
        for part, count, is_nf4 in (
            ("small_bf16", small, False),
            ("large_bf16", large, False),
            ("large_nf4", large, True),
        ):
            measure(name, part, folder, encoded, count, is_nf4=is_nf4)
        parts = figures[name]
        for size in ("small", "large"):
            if f"{size}_bf16" in parts and f"{size}_nf4" in parts:
                ratio = parts[f"{size}_nf4"]["ms_per_step"] / parts[f"{size}_bf16"]["ms_per_step"]
                parts[f"{size}_slower_percent"] = 100 * (ratio - 1)
        results.update(models=figures)
        print(name, {part: value for part, value in parts.items() if part.endswith("percent")}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["Qwen2-VL-2B", "Qwen2-VL-7B"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--budget", type=float, default=200, help="seconds for everything")
    parser.add_argument("--tiny", action="store_true")
    measure_all(parser.parse_args())
