"""Project an epoch over a large captioned data set from a part of it, with captions grouped by image and without.

    python bench/epoch.py JOB --out results.json [--images 8000] [--steps 60] [--budget 400]
    python bench/epoch.py JOB --out results.json --whole [--images 82783] [--drawn 2000] [--budget 600]

Draws images with five captions each into JOB (made by bench/job.py), trains on them with the command line in steps of
256 captions, and reads the logs: seconds of the features that are made before the first step (with decoding), then
captions per second of the steps after the tenth. COCO-2014's training split has 82,783 images and 414,113 captions. The
file is written after each training; a training that the budget cuts off counts as far as it went, and the file says so.

--whole runs the epoch once, from the start of the process to its exit, grouped: nothing is projected. --drawn draws so
many images, and writes the others as copies of them, each with a comment of its own in the file. Their pixels are the
same, but no cache takes two of them for one.
"""

import argparse
import csv
import json
import random
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import process
from job import OBJECTS, SUBJECTS, VERBS, make_image
from machine import name_device
from results_file import ResultsFile
from training_run import build_timeline, format_timeline

from lorgnette.planning.memory import MIN_IMAGES_BESIDE_STEPS
from lorgnette.report import run_log

NUM_IMAGES, NUM_CAPTIONS = 82_783, 414_113
BATCH_SIZE, NUM_WARMUP_STEPS = 256, 10


def make_data(out: Path, count: int, num_drawn: int | None = None) -> Path:
    """num_drawn: of the images; the others are copies of them."""
    folder = out / "many"
    folder.mkdir(exist_ok=True)
    rng = random.Random(1)
    table = out / "many.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        for i in range(count):
            for _ in range(5):
                words = [rng.choice(parts) for parts in (SUBJECTS, VERBS, OBJECTS)]
                rows.writerow([f"many/{i:06}.jpg", " ".join(words).capitalize() + "."])
    paths = [folder / f"{i:06}.jpg" for i in range(count)]
    drawn, others = paths[:num_drawn], paths[num_drawn:]
    with ProcessPoolExecutor() as pool:
        list(pool.map(make_image, drawn, range(count), chunksize=64))
        list(pool.map(copy_with_comment, cycle(drawn), others, chunksize=64))
    return table


def copy_with_comment(source: Path, path: Path) -> None:
    """Copy a JPEG, with its new name as a comment behind the first marker."""
    content, comment = source.read_bytes(), path.name.encode()
    path.write_bytes(content[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + content[2:])


def train(job: Path, table: Path, name: str, overrides: list[str], limit: float) -> dict[str, Any]:
    """Train and read the log. Raises process.FailedError if it ended before there was anything to read."""
    folder = job / name
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "lorgnette", "train", "coco-caption", f"model={job / 'model'}", f"data={table}",
        f"run={folder}", "report_to=none", "data.holdout=0", "train.epochs=1", f"train.batch_size={BATCH_SIZE}",
        "lora.dropout=0", "data.max_rows=null", *overrides,
    ]  # fmt: skip
    error, wall = None, limit
    try:
        wall = process.run(command, job / f"{name}.txt", limit)
    except process.FailedError as failure:
        error = failure
    return {"wall_s": wall, **read_log(folder / "log.jsonl", wall, error)}


def read_log(file: Path, wall: float, error: process.FailedError | None) -> dict[str, Any]:
    """The figures of a training that took `wall` seconds, up to the point where it was cut off."""
    records = run_log.read_log(file) if file.exists() else []
    stages = {r["name"]: r["seconds"] for r in records if r["kind"] == "stage"}
    lines = [r for r in records if r["kind"] == "train" and r["step"] > NUM_WARMUP_STEPS]
    if error and not lines:
        raise error
    seconds = sum(r["seconds"] for r in lines)
    steps = lines[-1]["step"] - NUM_WARMUP_STEPS
    rate = steps * BATCH_SIZE / seconds
    return {
        "features_s": stages["features"], "decoding_waited_s": stages["decoding"], "steps": steps,
        "captions_per_s": rate, "ms_per_step": 1000 * seconds / steps,
        "tokens_per_s": sum(r["tokens_per_s"] * r["seconds"] for r in lines) / seconds,
        "data_wait": sum(r["data_wait"] * r["seconds"] for r in lines) / seconds,
        "peak_gib": next((r["peak_gib"] for r in records if r["kind"] == "memory"), None),
        "timeline": build_timeline(records, wall),
        **({"cut_off": str(error)} if error else {}),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, help=f"8,000 if not given, with --whole {NUM_IMAGES}")
    parser.add_argument("--drawn", type=int, help="of these images; all if not given")
    parser.add_argument("--whole", action="store_true", help="one epoch from start to exit")
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--budget", type=float, default=400, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/epoch.py"], name_device(), arguments.budget)
    num_images = arguments.images or (NUM_IMAGES if arguments.whole else 8000)
    table = make_data(arguments.job, num_images, arguments.drawn)
    if arguments.whole:
        whole = train(arguments.job, table, "whole", ["data.group_by_image=true"], results.seconds_left)
        print(format_timeline(whole["timeline"]))
        results.update(images=num_images, drawn=arguments.drawn or num_images, whole=whole)
        print(json.dumps(results.figures, indent=1))
        raise SystemExit
    steps = f"train.max_steps={arguments.steps}"
    limit = 0.6 * results.seconds_left
    grouped = train(arguments.job, table, "grouped", [steps, "data.group_by_image=true"], limit)
    # Features that are made beside the steps are part of them.
    is_beside = num_images >= MIN_IMAGES_BESIDE_STEPS
    features = grouped["features_s"] * (1 if is_beside else NUM_IMAGES / num_images)
    epoch = {"features": features, "steps": NUM_CAPTIONS / grouped["captions_per_s"]}
    results.update(images=num_images, grouped=grouped, coco_2014_epoch_s=epoch)
    ungrouped = train(arguments.job, table, "ungrouped", [steps], results.seconds_left)
    ratio = grouped["captions_per_s"] / ungrouped["captions_per_s"]
    results.update(ungrouped=ungrouped, grouped_over_ungrouped=ratio)
    print(json.dumps(results.figures, indent=1))
