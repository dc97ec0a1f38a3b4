"""Time the road: `lorgnette train coco-caption` on the benchmark job, as a process, stage by stage.

    python bench/road.py JOB --runs 3 --out results.json [SETTING=VALUE …]

Writes seconds of each stage of every run, the whole process's wall time, peak memory, machine and versions.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lorgnette.report import log
from lorgnette.report.manifest import manifest


def run(job: Path, folder: Path, words: list[str]) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "lorgnette", "train", "coco-caption", f"model={job / 'model'}",
        f"data={job / 'captions.csv'}", f"run={folder}", "track.to=none", *words,
    ]  # fmt: skip
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    wall = time.perf_counter() - begun
    records = log.read(folder / "log.jsonl")
    stages = {r["name"]: r["seconds"] for r in records if r["kind"] == "stage"}
    steps = [r for r in records if r["kind"] == "train"]
    return {
        "wall_s": wall,
        "start_s": wall - sum(stages.values()) + stages["decoding"],
        "stages_s": stages,
        "steady_ms_per_step": 1000 * statistics.median(r["seconds"] / (b - a) for r, a, b in windows(steps)),
        "tokens_per_s": statistics.median(r["tokens_per_s"] for r in steps[2:]),
        "data_wait": statistics.mean(r["data_wait"] for r in steps[2:]),
        "peak_gib": next(r["peak_gib"] for r in records if r["kind"] == "memory"),
        "losses": [steps[0]["loss"], steps[-1]["loss"]],
    }


def windows(steps: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int, int]]:
    """(line, first step, last step) of the log's lines after the second: warm-up left out."""
    return [(now, before["step"], now["step"]) for before, now in pairwise(steps[1:])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_intermixed_args()
    runs = [run(given.job, given.job / "run", given.words) for _ in range(given.runs)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    made = manifest(seed=0, command=["bench/road.py", *given.words], device=device)
    given.out.write_text(json.dumps({"runs": runs, "made_with": made}, indent=2) + "\n")
    print(json.dumps(runs, indent=1))
