"""An epoch over a large captioned set, projected from a part of it: captions grouped by picture, and not.

    python bench/epoch.py JOB --out results.json [--pictures 8000] [--steps 60]

Draws pictures with five captions each beside JOB (bench/job.py's), trains on them by the command line with steps of 256
captions, and reads seconds off the logs: features over all pictures (decoding included), then captions a second of the
steps alone, those after the tenth. COCO-2014's training set has 82,783 pictures and 414,113 captions.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from job import OBJECTS, SUBJECTS, VERBS, make_picture

from lorgnette.report import log
from lorgnette.report.manifest import manifest

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


def trained(job: Path, table: Path, name: str, words: list[str]) -> dict[str, Any]:
    folder = job / name
    command = [
        sys.executable, "-m", "lorgnette", "train", "coco-caption", f"model={job / 'model'}", f"data={table}",
        f"run={folder}", "track.to=none", "data.holdout=0", "train.epochs=1", f"train.batch_size={PER_STEP}",
        "train.accumulation=1", "lora.dropout=0", "data.rows=null", *words,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = log.read(folder / "log.jsonl")
    stages = {r["name"]: r["seconds"] for r in records if r["kind"] == "stage"}
    lines = [r for r in records if r["kind"] == "train" and r["step"] > WARM_UP]
    seconds = sum(r["seconds"] for r in lines)
    steps = lines[-1]["step"] - WARM_UP
    rate = steps * PER_STEP / seconds
    return {
        "features_s": stages["features"], "decoding_waited_s": stages["decoding"], "steps": steps,
        "captions_per_s": rate, "ms_per_step": 1000 * seconds / steps,
        "tokens_per_s": sum(r["tokens_per_s"] * r["seconds"] for r in lines) / seconds,
        "peak_gib": next(r["peak_gib"] for r in records if r["kind"] == "memory"),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    given = parser.parse_args()
    table = make_data(given.job, given.pictures)
    grouped = trained(given.job, table, "grouped", [f"train.max_steps={given.steps}", "data.group_captions=image"])
    apart = trained(given.job, table, "apart", [f"train.max_steps={given.steps}"])
    features = grouped["features_s"] * PICTURES / given.pictures
    found = {
        "pictures": given.pictures, "grouped": grouped, "apart": apart,
        "grouped_over_apart": grouped["captions_per_s"] / apart["captions_per_s"],
        "coco_2014_epoch_s": {"features": features, "steps": CAPTIONS / grouped["captions_per_s"]},
        "made_with": manifest(seed=0, command=["bench/epoch.py"], device=torch.cuda.get_device_name()),
    }  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "made_with"}, indent=1))
