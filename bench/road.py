"""Time the road: `lorgnette train coco-caption` on the benchmark job, as a process, stage by stage.

    python bench/road.py JOB --runs 3 --out results.json [SETTING=VALUE …]

Writes seconds of each stage of every run, the whole process's wall time, peak memory, machine and versions: after
every run, and no run is begun that would outlast the budget.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import process
from kept import Kept, device_name

from lorgnette.report import run_log


def run(
    job: Path, folder: Path, words: list[str], limit: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Raises process.FailedError where it ends in an error or takes longer than `limit` seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "lorgnette", "train", "coco-caption", f"model={job / 'model'}",
        f"data={job / 'captions.csv'}", f"run={folder}", "report_to=none", *words,
    ]  # fmt: skip
    wall = process.run(command, folder.with_name(f"{folder.name}.txt"), limit, environment=environment)
    records = run_log.read_log(folder / "log.jsonl")
    stages = {r["name"]: r["seconds"] for r in records if r["kind"] == "stage"}
    steps = [r for r in records if r["kind"] == "train"]
    memory = next(r for r in records if r["kind"] == "memory")
    return {
        "wall_s": wall,
        "start_s": wall - sum(stages.values()) + stages["decoding"],
        "stages_s": stages,
        "steady_ms_per_step": 1000 * statistics.median(r["seconds"] / (b - a) for r, a, b in windows(steps)),
        "tokens_per_s": statistics.median(r["tokens_per_s"] for r in steps[2:]),
        "data_wait": statistics.mean(r["data_wait"] for r in steps[2:]),
        "peak_gib": memory["peak_gib"],
        "reserved_gib": memory["reserved_gib"],
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
    parser.add_argument("--budget", type=float, default=300, help="seconds everything may take")
    given = parser.parse_intermixed_args()
    kept = Kept(given.out, ["bench/road.py", *given.words], device_name(), given.budget)
    runs: list[dict[str, Any]] = []
    for n in range(given.runs):
        if kept.fits(runs[-1]["wall_s"] if runs else 0, f"run {n + 1}"):
            runs.append(run(given.job, given.job / "run", given.words, kept.left))
            kept.keep(runs=runs)
            print(json.dumps(runs[-1]), flush=True)
