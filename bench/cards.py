"""Train on a GPU of which only as much is free as a small card has, and compare with what `lorgnette plan` says of it.

    python bench/cards.py WORK --out results.json [--cases 8:Qwen2-VL-2B:small,…] [--budget 200]

A case is a card's GiB, a model, and images: small ones (280×280) or pages of 1280 tokens. This process takes the rest
of the GPU's memory away, so that a training of its own process finds what it would find on the card, less 1 GiB for
driver and desktop: CUDA's context and kernels, which are larger on a large GPU, come on top; how large they are, the
case before has shown. The plan's settings for the card are set (`needs …`); what `train` reduces by itself it reduces
here. The error is that of the plan's GiB beside what torch reserved until the last step. "memory" lists, at each stage,
GiB that are free, allocated, reserved, and not torch's. The weights are zeros, in files without content: they change
neither memory nor time. The file is written after every case.
"""

import argparse
import functools
import itertools
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job
import process
import torch
from machine import DEVICE, HAS_GPU, name_device
from results_file import ResultsFile

import lorgnette
from lorgnette.planning.memory import GIB, compute_usable_bytes
from lorgnette.report import run_log

CASES = (
    "12:Qwen2-VL-2B:small", "8:Qwen2-VL-2B:small", "16:Qwen2-VL-7B:small", "24:Qwen2-VL-7B:small", "8:Qwen2-VL-2B:page",
    "16:Qwen2-VL-7B:page", "12:Qwen2-VL-7B:small", "24:Qwen2-VL-7B:page", "12:Qwen2-VL-2B:page", "12:Qwen2-VL-7B:page",
    "16:Qwen2-VL-2B:page", "24:Qwen2-VL-2B:page", "16:Qwen2-VL-2B:small", "24:Qwen2-VL-2B:small",
)  # fmt: skip
IMAGE_SIZES = {"small": "280", "page": "896x1120"}
NUM_IMAGES = 36
SETTINGS = {
    "lora.rank": 64, "train.max_steps": 4, "train.eval_steps": 2, "train.logging_steps": 1, "data.holdout": 4,
    "predict.max_new_tokens": 8, "report_to": "none",
}  # fmt: skip
SECONDS_PER_CASE = 25
PROBE = "probe"
"""Begins a line of a training's output that has figures."""


def run_case(work: Path, name: str, limit: float) -> dict[str, Any]:
    gib, model, images = name.split(":")
    folder = work / model
    if not folder.exists():
        job.make_model(folder, job.BUILT_IN, model, has_weights=False)
        job.write_weights(folder, json.loads((folder / "config.json").read_text()), zeros=True)
    settings = {"model": str(folder), "image_size": IMAGE_SIZES[images], **SETTINGS}
    [card] = lorgnette.plan(
        work / "captions.csv", settings=settings, memory=float(gib), console=open_silent_console()
    ).cards
    if card.fit is None:
        return {"fits": False}
    fit, run = card.fit, work / "runs" / name.replace(":", "-")
    before = hold_all_but(compute_usable_bytes(float(gib)) + _other_bytes[-1])
    command = [
        sys.executable, __file__, "--train", f"data={work / 'captions.csv'}", f"run={run}",
        *(f"{name}={value}" for name, value in settings.items()), *card.settings,
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(run.with_name(f"{run.name}-cache"))}  # no features from before
    output = run.with_name(f"{run.name}.txt")
    try:
        seconds = process.run(command, output, limit, environment=environment)
    finally:
        stages = read_stages(output)
        print(*stages, sep="\n", flush=True)
    if stages:
        _other_bytes.append(int(float(stages[-1].split()[-1]) * GIB) - before)
    records = run_log.read_log(run / "log.jsonl")
    used = next(record for record in records if record["kind"] == "memory")
    reserved, planned = used["reserved_gib"], fit.peak_bytes / GIB
    lines = output.read_text(encoding="utf-8").splitlines()
    return {
        "fits": reserved <= float(gib) - 1, "settings": card.settings, "max_tokens": fit.max_tokens,
        "recompute_layers": fit.recompute_layers, "is_loaded_in_turn": fit.is_loaded_in_turn, "planned_gib": planned,
        "reserved_gib": reserved, "error_percent": 100 * (planned / reserved - 1), "peak_gib": used["peak_gib"],
        "out_of_memory_steps": sum("memory" in str(record.get("text", "")) for record in records),
        "said": [line for line in lines if line.startswith(("memory", "engine"))], "seconds": seconds,
        "memory": stages, "other_gib": _other_bytes[-1] / GIB,
        "losses": [record["loss"] for record in records if record["kind"] == "train"],
    }  # fmt: skip


def open_silent_console() -> Any:
    from rich.console import Console

    return Console(file=open(os.devnull, "w"))


_held: list[torch.Tensor] = []
_other_bytes = [int(0.81 * GIB)]
"""What each training took outside torch; first what it takes on an H100."""


def hold_all_but(free: int) -> int:
    """Leave this many bytes to others. Returns the bytes that are in use then."""
    _held.clear()
    torch.cuda.empty_cache()
    _held.append(torch.empty(torch.cuda.mem_get_info()[0] - free, dtype=torch.uint8, device=DEVICE))
    left, total = torch.cuda.mem_get_info()
    return total - left


def read_stages(output: Path) -> list[str]:
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines() if output.exists() else []
    return [line for line in lines if line.startswith(PROBE)]


def train(words: list[str]) -> None:
    """`lorgnette train`, which prints its memory at each stage."""
    from lorgnette.engine import open_for_training
    from lorgnette.engine.fast import FastEngine
    from lorgnette.inference.generator import Generator
    from lorgnette.training import setup
    from lorgnette.training.trainer import Trainer

    watched = (
        (setup, "fit_to_memory"), (open_for_training, "warm_up_tower"), (open_for_training, "warm_up_decoder"),
        (open_for_training, "load_decoder"), (open_for_training, "release_workspaces"),
        (FastEngine, "capture_ahead"), (Trainer, "__init__"), (Trainer, "evaluate"), (Generator, "prefill"),
        (Trainer, "_launch_step"),
    )  # fmt: skip
    for owner, name in watched:
        setattr(owner, name, probe(getattr(owner, name)))
    sys.argv = ["lorgnette", "train", *words]
    try:
        runpy.run_module("lorgnette", run_name="__main__")
    finally:
        pools: dict[tuple[object, ...], list[int]] = {}
        for segment in torch.cuda.memory_snapshot() if HAS_GPU else ():
            sizes = pools.setdefault((segment["segment_pool_id"], segment["stream"]), [0, 0, 0])
            sizes[:] = sizes[0] + 1, sizes[1] + segment["total_size"], sizes[2] + segment["allocated_size"]
        for (pool, stream), (count, reserved, allocated) in pools.items():
            text = f"pool {pool} stream {stream}: {count} segments, {reserved / GIB:.2f} reserved"
            print(PROBE, f"{text}, {allocated / GIB:.2f} allocated", flush=True)
        print_memory("end")


def probe(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which prints the memory after each of its first calls."""
    calls = itertools.count()

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        finally:
            if next(calls) < 3:
                print_memory(function.__qualname__)

    return run


def print_memory(stage: str) -> None:
    if not HAS_GPU:
        return
    free, total = torch.cuda.mem_get_info()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    figures = (free, allocated, torch.cuda.max_memory_allocated(), reserved, torch.cuda.max_memory_reserved())
    text = " ".join(f"{size / GIB:.2f}" for size in figures)
    other = f"other {(total - free - reserved) / GIB:.3f}"  # the last word, which the other process reads
    print(PROBE, f"{stage:<24} free, allocated, most, reserved, most {text} {other}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--budget", type=float, default=200, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/cards.py", arguments.cases], name_device(), arguments.budget)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if not (arguments.work / "captions.csv").exists():
        job.make_images(arguments.work, NUM_IMAGES)
    cases: dict[str, Any] = {}
    for name in arguments.cases.split(","):
        if not results.fits(SECONDS_PER_CASE, name):
            continue
        try:
            cases[name] = run_case(arguments.work, name, min(results.seconds_left, 2 * SECONDS_PER_CASE))
        except process.FailedError as error:
            cases[name] = {"failed": str(error)}
        results.update(cases=cases)
        print(name, json.dumps(cases[name]), flush=True)
