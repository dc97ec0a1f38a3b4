"""Train on a GPU of which only as much is free as a small card has, and compare with what `lorgnette plan` says of it.

    python bench/cards.py WORK --out results.json [--cases 8:Qwen2-VL-2B:small,…] [--budget 200]

A case is a card's GiB, a model, and images: small ones (280×280) or pages of 1280 tokens. This process takes the rest
of the GPU's memory away, so that a training of its own process finds what it would find on the card, less 1 GiB for
driver and desktop. The plan's settings for the card are set (`needs …`); what `train` reduces by itself it reduces
here. The error is that of the plan's GiB beside what torch reserved until the last step. The weights are zeros, in
files without content: they change neither memory nor time. The file is written after every case.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import job
import process
import torch
from machine import DEVICE, name_device
from results_file import ResultsFile

import lorgnette
from lorgnette.planning import memory as planning
from lorgnette.planning.memory import GIB, compute_usable_bytes
from lorgnette.report import run_log

CASES = (
    "8:Qwen2-VL-2B:small", "16:Qwen2-VL-7B:small", "8:Qwen2-VL-2B:page", "24:Qwen2-VL-7B:small", "16:Qwen2-VL-7B:page",
    "12:Qwen2-VL-7B:small", "24:Qwen2-VL-7B:page", "12:Qwen2-VL-2B:page", "12:Qwen2-VL-7B:page", "16:Qwen2-VL-2B:page",
    "12:Qwen2-VL-2B:small", "24:Qwen2-VL-2B:page", "16:Qwen2-VL-2B:small", "24:Qwen2-VL-2B:small",
)  # fmt: skip
IMAGE_SIZES = {"small": "280", "page": "896x1120"}
NUM_IMAGES = 36
SETTINGS = {
    "lora.rank": 64, "train.max_steps": 4, "train.eval_steps": 2, "train.logging_steps": 1, "data.holdout": 4,
    "predict.max_new_tokens": 8, "report_to": "none",
}  # fmt: skip
SECONDS_PER_CASE = 40
_FREE = "import torch; torch.zeros(1, device='cuda'); print(torch.cuda.mem_get_info()[0])"


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
    # The training counts what is free, less the kernels that it will load.
    hold_all_but(compute_usable_bytes(float(gib)) + planning._KERNEL_BYTES)
    command = [
        sys.executable, "-m", "lorgnette", "train", f"data={work / 'captions.csv'}", f"run={run}",
        *(f"{name}={value}" for name, value in settings.items()), *card.settings,
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(run.with_name(f"{run.name}-cache"))}  # no features from before
    output = run.with_name(f"{run.name}.txt")
    seconds = process.run(command, output, limit, environment=environment)
    records = run_log.read_log(run / "log.jsonl")
    used = next(record for record in records if record["kind"] == "memory")
    reserved, planned = used["reserved_gib"], fit.peak_bytes / GIB
    lines = output.read_text(encoding="utf-8").splitlines()
    return {
        "fits": reserved <= float(gib) - 1, "settings": card.settings, "max_tokens": fit.max_tokens,
        "recompute_layers": fit.recompute_layers, "loads_in_turn": fit.loads_in_turn, "planned_gib": planned,
        "reserved_gib": reserved, "error_percent": 100 * (planned / reserved - 1), "peak_gib": used["peak_gib"],
        "out_of_memory_steps": sum("memory" in str(record.get("text", "")) for record in records),
        "said": [line for line in lines if line.startswith(("memory", "engine"))], "seconds": seconds,
        "losses": [record["loss"] for record in records if record["kind"] == "train"],
    }  # fmt: skip


def open_silent_console() -> Any:
    from rich.console import Console

    return Console(file=open(os.devnull, "w"))


_held: list[torch.Tensor] = []


def hold_all_but(free: int) -> None:
    """Leave this many bytes to a process that has CUDA's context already."""
    _held.clear()
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    other = int(subprocess.run([sys.executable, "-c", _FREE], capture_output=True, text=True, check=True).stdout)
    size = before - (before - other) - free
    _held.append(torch.empty(size, dtype=torch.uint8, device=DEVICE))


if __name__ == "__main__":
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
