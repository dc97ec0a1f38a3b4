"""Time the model families at true shapes: optimizer steps, their memory predicted and measured, and the vision tower.

    python bench/families.py WORK --out results.json [--models Qwen2-VL-2B,…] [--budget 400]

Every model is made in WORK (bench/job.py), measured in a process of its own and removed; WORK needs 18 GB for 8B. Steps
have 16 examples, and as many as give LARGE_STEP tokens, of images at 280×280 (288×288 where a token has 32 pixels). The
images' features are random there (bench/step.py). The share of the ceiling counts the decoder's projections alone, as
bench/step.py does. Each process measures a ceiling; clocks differ by a tenth, so all shares in "shares" are of one
ceiling, the median of all processes. A part that fails is listed with its error. The file is written after every model.
--tiny: two small layers of each family.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job
import process
import torch
from machine import DEVICE, HAS_GPU, measure_matmul_tflops, name_device, synchronize
from results_file import ResultsFile

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.io.atomic import write_json
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import find_tower_class
from lorgnette.models.registry import parse_configs
from lorgnette.planning.throughput import count_tower_flops
from lorgnette.processing.processor import Processor
from lorgnette.types import Image, ImageGrid

MEASURED = (
    "Qwen2-VL-2B", "Qwen3-VL-2B", "Qwen3-VL-4B", "Qwen2.5-VL-3B", "Qwen2-VL-7B", "Qwen2.5-VL-7B", "Qwen3-VL-8B",
)  # fmt: skip
SMALL_STEP, LARGE_STEP = 16, 8400
"""Examples, and tokens, of a step."""
SIDE = 280
TOWER_IMAGES = (41, 82)
MODEL_SECONDS = 80
"""No model starts with less time left: the largest takes about this long."""
LORA = LoraSettings(rank=64, alpha=16, dropout=0.05)


def measure_model(folder: Path, out: Path, small: int, large_tokens: int) -> None:
    """Write all figures of one model after every part. A part that fails has {"failed": its error}."""
    import memory
    import step

    processor = Processor.from_folder(folder / "model", ProcessorSettings(image_size=(SIDE, SIDE)))
    encoded = [processor.encode(example) for example in step.load_examples(folder)]
    tokens = statistics.mean(len(example.input_ids) for example in encoded)
    large = math.ceil(large_tokens / tokens)
    ceiling = measure_matmul_tflops()
    figures: dict[str, Any] = {"ceiling_tflops": ceiling, "tokens_per_example": tokens}

    def try_part(name: str, measure: Callable[[], Any]) -> None:
        try:
            figures[name] = measure()
        except Exception as error:  # the other parts still have their figures
            traceback.print_exc()
            figures[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        write_json(out, figures)

    # The memory first: its peak is that of a process that has done nothing else.
    for count, name in ((small, "small"), (large, "large")):
        size = round((count - 0.5) * (tokens - 2))  # as memory.py counts
        try_part(f"memory_{name}", lambda size=size: memory.measure(folder, encoded, "fast", size, 64, 0.05, 0))
    for count, name in ((small, "small"), (large, "large")):
        try_part(f"step_{name}", lambda count=count: step.measure(folder, encoded, count, LORA, ceiling))
    try_part("tower", lambda: measure_tower(BaseCheckpoint.from_folder(folder / "model")))


def measure_tower(checkpoint: BaseCheckpoint) -> list[dict[str, float]]:
    """Milliseconds and TFLOP/s of the fast engine's tower; FLOP are those of planning/throughput.py."""
    from tower import time_ms

    _, config = parse_configs(checkpoint.load_hf_config())
    tower = find_tower_class(config.model_type).from_checkpoint(checkpoint, DEVICE, torch.bfloat16)
    token_side = config.patch_size * config.merge_size
    side = round(SIDE / token_side) * config.merge_size
    rates = []
    for count in TOWER_IMAGES:
        grids = [ImageGrid(Image(Path(str(i))), 1, side, side, config.merge_size) for i in range(count)]
        patches = torch.randn(count * side**2, config.patch_dim, device=DEVICE, dtype=torch.bfloat16)
        with torch.no_grad():
            ms = time_ms(lambda grids=grids, patches=patches: tower(grids, patches)) if HAS_GPU else math.nan
            assert tower(grids, patches).shape == (count * side**2 // config.merge_size**2, config.feature_width)
        tflop = sum(count_tower_flops(config, grid) for grid in grids) / 1e12
        rates.append({"images": count, "side": side, "ms": ms, "tflop": tflop, "tflop_s": 1000 * tflop / ms})
    synchronize()
    return rates


def measure_all(arguments: argparse.Namespace) -> None:
    results = ResultsFile(arguments.out, ["bench/families.py", *arguments.models], name_device(), arguments.budget)
    work: Path = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job.make_images(work, arguments.images)
    models: dict[str, Any] = {}
    for name in arguments.models:
        if not results.fits(0 if arguments.tiny else MODEL_SECONDS, name):
            continue
        before, folder, part = results.seconds_left, work / name, work / f"{name}.json"
        command = [sys.executable, __file__, str(work), "--measure", name, "--out", str(part)]
        log = work / f"{name}.txt"
        try:
            process.run([*command, *(["--tiny"] if arguments.tiny else [])], log, results.seconds_left)
        except process.FailedError as error:
            models[name] = {"failed": str(error)}
        if part.exists():
            models[name] = models.get(name, {}) | json.loads(part.read_text())
        shutil.rmtree(folder, ignore_errors=True)
        models[name]["took_s"] = before - results.seconds_left
        results.update(models=models, **compare_shares(models))
        print(name, json.dumps(summarize(models[name])), flush=True)
    print(json.dumps(compare_shares(models)), flush=True)


def compare_shares(models: dict[str, Any]) -> dict[str, Any]:
    """Shares by computed token of one ceiling, in TFLOP/s: the median of what the models' processes measured."""
    ceilings = [model["ceiling_tflops"] for model in models.values() if model.get("ceiling_tflops")]
    if not ceilings:
        return {}
    ceiling = statistics.median(ceilings)
    shares = {
        name: {
            step: model[step]["share_of_ceiling_by_rows"] * model["ceiling_tflops"] / ceiling
            for step in ("step_small", "step_large")
            if model.get(step, {}).get("share_of_ceiling_by_rows")
        }
        for name, model in models.items()
        if model.get("ceiling_tflops")
    }
    return {"ceiling_tflops": ceiling, "shares": shares}


def summarize(model: dict[str, Any]) -> dict[str, Any]:
    """Steps, tower and memory, without kernels and items."""
    summary = {name: model[name] for name in ("failed", "ceiling_tflops", "tower", "took_s") if name in model}
    for name in ("step_small", "step_large"):
        run = model.get(name, {})
        shares = ("share_of_ceiling_by_rows", "share_of_ceiling_by_operations")
        keys = ("failed", "samples", "rows", "ms_per_step", *shares, "peak_gib")
        summary[name] = {key: run[key] for key in keys if key in run}
    for name in ("memory_small", "memory_large"):
        run = model.get(name, {})
        summary[name] = {key: run[key] for key in ("failed", "tokens", "peak_gib", "error_percent") if key in run}
    return summary


def measure_one(arguments: argparse.Namespace) -> None:
    """In a process of its own: make the model, measure it, write its figures."""
    folder: Path = arguments.work / arguments.measure
    folder.mkdir(exist_ok=True)
    job.make_model(folder / "model", job.BUILT_IN, arguments.measure, tiny=arguments.tiny)
    for name in ("images", "captions.csv"):
        (folder / name).symlink_to((arguments.work / name).resolve())
    steps = (2, 300) if arguments.tiny else (SMALL_STEP, LARGE_STEP)
    measure_model(folder, arguments.out, *steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MEASURED))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--budget", type=float, default=400, help="seconds for everything")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--measure", choices=job.MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    (measure_one if arguments.measure else measure_all)(arguments)
