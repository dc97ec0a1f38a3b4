"""NF4 (QLoRA) in the fast engine: the kernel that dequantizes, steps beside bf16, memory with and without recompute.

    python bench/nf4.py WORK --out results.json [--models Qwen2-VL-2B,Qwen2-VL-7B] [--kernel] [--budget 200]

The kernel's rate counts the bytes that it reads and writes, for the largest projection of the last model and for all of
a layer. Steps have 16 examples, the tutorial's, in bf16 and in NF4; of the last model also as many as give LARGE_STEP
tokens. Memory is that of the tutorial's step in NF4 with no layer recomputed and with all; the features of 500 images
are on the device. Weights and features are random, quantized here; nothing of the models is on the disk. The file is
written after every part.
--kernel: its rate alone. --tiny: two small layers.
"""

import argparse
import gc
import json
import math
import shutil
import statistics
from collections.abc import Callable
from functools import partial
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
from lorgnette.models.registry import TextConfig
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded

SECONDS_PER_PART = 12
NUM_STEPS = 8
REPEATS = 10


def make_random_matrix(shape: tuple[int, int]) -> Nf4Matrix:
    matrix = Nf4Matrix.allocate(shape, DEVICE, is_nested=True)
    fill_matrix(matrix)
    return matrix


def fill_matrix(matrix: Nf4Matrix) -> None:
    absmax = torch.empty(len(matrix.absmax), device=DEVICE)
    values = torch.empty(matrix.shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, 0.02)
    quantize_nf4(values, matrix.packed, absmax)
    quantize_absmax(absmax, matrix)


def measure_kernel(text: TextConfig) -> dict[str, Any]:
    """TB/s of the largest projection, and of a layer's seven one after the other, as a pass runs them."""
    columns = LORA.rank
    matrices = {name: make_random_matrix(shape) for name, shape in text.linear_shapes.items()}
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
    for label, names in (("gate_proj", ["gate_proj"]), ("layer", list(matrices))):
        ms, size = time_ms(lambda names=names: dequantize(names)), sum(map(count_bytes, names))
        rates[label] = {"ms": ms, "tb_s": size / ms / 1e9}
    rates["model_ms"] = rates["layer"]["ms"] * text.num_layers
    return rates


def time_ms(run: Callable[[], None]) -> float:
    """Within a CUDA graph of REPEATS calls, as in a step: launched one by one, the host would be slower. The median of
    nine; not a number without a GPU."""
    run()
    if not HAS_GPU:
        return math.nan
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            run()
    times = []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / REPEATS)
    return statistics.median(times[1:])


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
    for _ in range(2):  # every shape of these steps: once eager, once captured
        timer.time_separate_steps(NUM_STEPS)
    seconds = timer.time_queued_steps(NUM_STEPS)
    synchronize()
    return {
        "weights": "nf4" if is_nf4 else "bf16", "samples": count, "rows": statistics.mean(timer.num_computed_tokens),
        "recompute_layers": recompute_layers, "ms_per_step": 1000 * seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else None,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if HAS_GPU else None,
    }  # fmt: skip


def make_job(work: Path, name: str, *, tiny: bool) -> tuple[Path, list[Encoded]]:
    """The files of a model without its weights, and the encoded captions."""
    folder = work / name
    job.make_model(folder / "model", job.BUILT_IN, name, tiny=tiny, has_weights=False)
    for file in ("images", "captions.csv"):
        (folder / file).symlink_to(work / file)
    processor = Processor.from_folder(folder / "model", ProcessorSettings(image_size=(SIDE, SIDE)))
    return folder, [processor.encode(example) for example in load_examples(folder)]


def compare_steps(parts: dict[str, Any]) -> dict[str, float]:
    """By how many percent NF4's steps are slower."""
    pairs = {size: [parts.get(f"{size}_{kind}") for kind in ("bf16", "nf4")] for size in ("small", "large")}
    return {
        size: 100 * (nf4["ms_per_step"] / bf16["ms_per_step"] - 1)
        for size, (bf16, nf4) in pairs.items()
        if bf16 and nf4
    }


def measure_all(arguments: argparse.Namespace) -> None:
    results = ResultsFile(arguments.out, ["bench/nf4.py", *arguments.models], name_device(), arguments.budget)
    work: Path = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job.make_images(work, arguments.images)
    figures: dict[str, dict[str, Any]] = {name: {} for name in arguments.models}
    for name, parts in figures.items():
        folder, encoded = make_job(work, name, tiny=arguments.tiny)
        text = BaseCheckpoint.from_folder(folder / "model", needs_weights=False).load_text_config()
        small = 2 if arguments.tiny else SMALL_STEP
        tokens = statistics.mean(len(example.input_ids) for example in encoded)
        large = math.ceil((300 if arguments.tiny else LARGE_STEP) / tokens)
        measure = partial(measure_step, folder, encoded)
        todo: dict[str, Callable[[], dict[str, Any]]] = {
            "kernel": partial(measure_kernel, text),
            "recompute": partial(measure, small, is_nf4=True, recompute_layers=text.num_layers),
            "small_nf4": partial(measure, small, is_nf4=True),
            "small_bf16": partial(measure, small, is_nf4=False),
            "large_bf16": partial(measure, large, is_nf4=False),
            "large_nf4": partial(measure, large, is_nf4=True),
        }
        wanted = list(todo) if name == arguments.models[-1] else ["recompute", "small_nf4", "small_bf16"]
        for part in ["kernel"] if arguments.kernel else wanted:
            if results.fits(0 if arguments.tiny else SECONDS_PER_PART, f"{name} {part}"):
                parts[part] = todo[part]()
                slower = {model: compare_steps(made) for model, made in figures.items()}
                results.update(models=figures, slower_percent=slower)
                print(name, part, json.dumps(parts[part]), flush=True)
    print("slower, in percent:", json.dumps(results.figures.get("slower_percent")), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["Qwen2-VL-2B", "Qwen2-VL-7B"])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--budget", type=float, default=200, help="seconds for everything")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--kernel", action="store_true")
    measure_all(parser.parse_args())
