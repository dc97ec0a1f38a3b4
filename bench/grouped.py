"""Does training on all captions of an image at once do harm? Eval losses of the built-in model, grouped and not.

    python bench/grouped.py OUT [--images 200] [--seeds 3]

Draws scenes with five different descriptions each and trains on the same settings and seeds; the held-out scenes are
other ones. Runs on a CPU.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.report import run_log

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from demo_model.descriptions import write_description


def make_data(out: Path, num_images: int) -> None:
    rng = random.Random(7)
    (out / "images").mkdir(parents=True)
    for name, first, count in (("train", 0, num_images), ("test", num_images, 40)):
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image_path", "caption"])
            for i in range(first, first + count):
                scene = sample_scene(rng)
                draw_scene(scene).save(out / "images" / f"{i}.png")
                rows.writerows([f"images/{i}.png", write_description(scene, rng)] for _ in range(5))


def train(out: Path, group_by_image: bool, seed: int) -> list[float]:
    """The eval losses of a training."""
    folder = out / f"{'grouped' if group_by_image else 'ungrouped'}-{seed}"
    command = [
        sys.executable, "-m", "lorgnette", "train", "demo", f"data={out / 'train.csv'}",
        f"data.test={out / 'test.csv'}", f"data.group_by_image={str(group_by_image).lower()}", f"seed={seed}",
        f"run={folder}", "report_to=none", "train.epochs=2", "train.eval_steps=10", "predict.metrics=none",
        "predict.max_new_tokens=1",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = run_log.read_log(folder / "log.jsonl")
    return [record["eval_loss"] for record in records if record["kind"] == "eval"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    make_data(arguments.out, arguments.images)
    for group_by_image in (False, True):
        runs = [train(arguments.out, group_by_image, seed) for seed in range(arguments.seeds)]
        last = [losses[-1] for losses in runs]
        print(json.dumps({"grouped": group_by_image, "last": last, "mean": statistics.mean(last), "runs": runs}))
