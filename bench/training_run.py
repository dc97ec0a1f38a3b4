"""Time `lorgnette train coco-caption` on the benchmark job, in a process of its own, stage by stage.

    python bench/training_run.py JOB --runs 3 --out results.json [SETTING=VALUE …]

Writes the seconds of each stage of every run, the wall time of the process, peak memory, machine and versions after
every run. A run that would exceed the budget does not start. Prints when each stage ended, in seconds since the process
was started, and what lies between stages.
"""

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import process
from machine import name_device
from results_file import ResultsFile

from lorgnette.report import run_log


def run(
    job: Path, folder: Path, overrides: list[str], limit: float, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Train once and read the figures. Raises process.FailedError if it fails or exceeds `limit` seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "lorgnette", "train", "coco-caption", f"model={job / 'model'}",
        f"data={job / 'captions.csv'}", f"run={folder}", "report_to=none", *overrides,
    ]  # fmt: skip
    wall = process.run(command, folder.with_name(f"{folder.name}.txt"), limit, environment=environment)
    records = run_log.read_log(folder / "log.jsonl")
    stages = {r["name"]: r["seconds"] for r in records if r["kind"] == "stage"}
    lines = [r for r in records if r["kind"] == "train"]
    memory = next(r for r in records if r["kind"] == "memory")
    # The first two lines are the warm-up.
    steady = [(line, line["step"] - earlier["step"]) for earlier, line in pairwise(lines[1:])]
    return {
        "wall_s": wall,
        "unaccounted_s": wall - sum(stages.values()) + stages["decoding"],
        "stages_s": stages,
        "timeline": build_timeline(records, wall),
        "steady_ms_per_step": 1000 * statistics.median(line["seconds"] / steps for line, steps in steady),
        "tokens_per_s": statistics.median(line["tokens_per_s"] for line in lines[2:]),
        "data_wait": statistics.mean(line["data_wait"] for line in lines[2:]),
        "peak_gib": memory["peak_gib"],
        "reserved_gib": memory["reserved_gib"],
        "losses": [lines[0]["loss"], lines[-1]["loss"]],
    }


def build_timeline(records: Sequence[run_log.Record], wall: float) -> list[dict[str, Any]]:
    """When each stage ended, its seconds, and the seconds since the end of the stage before it; last the exit.

    Empty for a version that does not log when stages end.
    """
    stages = [r for r in records if r["kind"] == "stage" and "end_s" in r]
    if not stages:
        return []
    stages.append({"name": "exit", "seconds": wall - stages[-1]["end_s"], "end_s": wall})
    ends = [0.0, *(stage["end_s"] for stage in stages)]
    return [
        {name: stage[name] for name in ("name", "end_s", "seconds")}
        | {"before_s": stage["end_s"] - stage["seconds"] - end}
        for stage, end in zip(stages, ends, strict=False)
    ]


def format_timeline(timeline: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'stage':<12} {'end':>7} {'seconds':>7} {'between':>7}"]
    for stage in timeline:
        lines.append(f"{stage['name']:<12} {stage['end_s']:7.2f} {stage['seconds']:7.2f} {stage['before_s']:7.2f}")
    lines.append(f"{'in no stage':<28} {sum(stage['before_s'] for stage in timeline):7.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_intermixed_args()
    command = ["bench/training_run.py", *arguments.overrides]
    results = ResultsFile(arguments.out, command, name_device(), arguments.budget)
    runs: list[dict[str, Any]] = []
    for n in range(arguments.runs):
        if results.fits(runs[-1]["wall_s"] if runs else 0, f"run {n + 1}"):
            runs.append(run(arguments.job, arguments.job / "run", arguments.overrides, results.seconds_left))
            results.update(runs=runs)
            print(json.dumps(runs[-1]), format_timeline(runs[-1]["timeline"]), sep="\n", flush=True)
