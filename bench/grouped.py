"""Does it harm to train on all captions of a picture at once? Eval losses of the built-in model, grouped and not.

    python bench/grouped.py OUT [--pictures 200] [--seeds 3]

Draws scenes with five descriptions each, in other words every time, and trains on the same settings and seeds; the
held-out scenes are others. Runs on a CPU.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from lorgnette.demo.captions import write_description
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.report import run_log


def make_data(out: Path, pictures: int) -> None:
    words = random.Random(7)
    (out / "pictures").mkdir(parents=True)
    for name, first, count in (("train", 0, pictures), ("test", pictures, 40)):
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image_path", "caption"])
            for i in range(first, first + count):
                scene = sample_scene(words)
                draw_scene(scene).save(out / "pictures" / f"{i}.png")
                rows.writerows([f"pictures/{i}.png", write_description(scene, words)] for _ in range(5))


def losses(out: Path, grouping: str, seed: int) -> list[float]:
    folder = out / f"{grouping}-{seed}"
    command = [
        sys.executable, "-m", "lorgnette", "train", "demo", f"data={out / 'train.csv'}",
        f"data.test={out / 'test.csv'}",
        f"data.group_by_image={grouping}", f"seed={seed}", f"run={folder}", "report_to=none", "train.epochs=2",
        "train.eval_steps=10", "predict.metrics=none", "predict.max_new_tokens=1",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [record["eval_loss"] for record in run_log.read_log(folder / "log.jsonl") if record["kind"] == "eval"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    make_data(given.out, given.pictures)
    for grouping in ("none", "image"):
        found = [losses(given.out, grouping, seed) for seed in range(given.seeds)]
        last = [run[-1] for run in found]
        print(json.dumps({"group_captions": grouping, "last": last, "mean": statistics.mean(last), "runs": found}))
