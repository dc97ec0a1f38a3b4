"""An epoch over a large captioned set, projected from a part of it: captions grouped by picture, and not.

    python bench/epoch.py JOB --out results.json [--pictures 8000] [--steps 60] [--budget 400]

Draws pictures with five captions each beside JOB (bench/job.py's), trains on them by the command line with steps of 256
captions, and reads seconds off the logs: features over all pictures (decoding included), then captions a second of the
steps alone, those after the tenth. COCO-2014's training set has 82,783 pictures and 414,113 captions. The file is
written after each training; one that the budget of seconds cuts off is read as far as it went, and says so.
"""

import argparse
import csv
import json
import random
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import process
from job import OBJECTS, SUBJECTS, VERBS, make_picture
from kept import Kept, device_name

from lorgnette.report import run_log

PICTURES, CAPTIONS = 82_783, 414_113
PER_STEP, WARM_UP = 256, 10


def make_data(out: Path, count: int) -> Path:
    folder = out / "many"
    folder.mkdir(exist_ok=True)
    words = random.Random(1)
    table = out / "many.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        for i in range(count):
            for _ in range(5):
                said = [words.choice(parts) for parts in (SUBJECTS, VERBS, OBJECTS)]
                rows.writerow([f"many/{i:06}.jpg", " ".join(said).capitalize() + "."])
    with ProcessPoolExecutor() as pool:
        list(pool.map(make_picture, (folder / f"{i:06}.jpg" for i in range(count)), range(count), chunksize=64))
    return table


def trained(job: Path, table: Path, name: str, words: list[str], limit: float) -> dict[str, Any]:
    """Raises process.FailedError where it ended before there was anything to read."""
    folder = job / name
    shutil.rmtree(folder, ignore_errors=True)
    command = [
        sys.executable, "-m", "lorgnette", "train", "coco-caption", f"model={job / 'model'}", f"data={table}",
        f"run={folder}", "report_to=none", "data.holdout=0", "train.epochs=1", f"train.batch_size={PER_STEP}",
        "train.accumulation=1", "lora.dropout=0", "data.max_rows=null", *words,
    ]  # fmt: skip
    cut_off = None
    try:
        process.run(command, job / f"{name}.txt", limit)
    except process.FailedError as failed:
        cut_off = failed
    return read(folder / "log.jsonl", cut_off)


def read(file: Path, cut_off: process.FailedError | None) -> dict[str, Any]:
    """What the log says of a training, up to where it was cut off."""
    records = run_log.read_log(file) if file.exists() else []
    stages = {r["name"]: r["seconds"] for r in records if r["kind"] == "stage"}
    lines = [r for r in records if r["kind"] == "train" and r["step"] > WARM_UP]
    if cut_off and not lines:
        raise cut_off
    seconds = sum(r["seconds"] for r in lines)
    steps = lines[-1]["step"] - WARM_UP
    rate = steps * PER_STEP / seconds
    return {
        "features_s": stages["features"], "decoding_waited_s": stages["decoding"], "steps": steps,
        "captions_per_s": rate, "ms_per_step": 1000 * seconds / steps,
        "tokens_per_s": sum(r["tokens_per_s"] * r["seconds"] for r in lines) / seconds,
        "peak_gib": next((r["peak_gib"] for r in records if r["kind"] == "memory"), None),
        **({"cut_off": str(cut_off)} if cut_off else {}),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--budget", type=float, default=400, help="seconds everything may take")
    given = parser.parse_args()
    kept = Kept(given.out, ["bench/epoch.py"], device_name(), given.budget)
    table = make_data(given.job, given.pictures)
    steps = f"train.max_steps={given.steps}"
    grouped = trained(given.job, table, "grouped", [steps, "data.group_by_image=true"], 0.6 * kept.left)
    features = grouped["features_s"] * PICTURES / given.pictures
    epoch = {"features": features, "steps": CAPTIONS / grouped["captions_per_s"]}
    kept.keep(pictures=given.pictures, grouped=grouped, coco_2014_epoch_s=epoch)
    apart = trained(given.job, table, "apart", [steps], kept.left)
    kept.keep(apart=apart, grouped_over_apart=grouped["captions_per_s"] / apart["captions_per_s"])
    print(json.dumps(kept.found, indent=1))
