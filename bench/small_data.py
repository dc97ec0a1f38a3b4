"""Compare `train.epochs=auto` with fixed numbers of steps on few images, with the built-in model.

    python bench/small_data.py --out results.json [--workers 12] [--images 10,30] [--rates 1e-3] [--seeds 1] [--rules …]

Every run trains on N drawn images and answers 64 others, the same for all runs. Of each run the file holds the number
of steps and why they ended, the eval loss at the end and at the best step, and how many of the 64 answers are equal to
the reference. The file is written after every run; a second call runs only the missing ones.
"""

import argparse
import csv
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from results_file import ResultsFile
from rich.console import Console

import lorgnette
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.report import run_log
from lorgnette.report.run_dir import RunDir
from lorgnette.training import auto_steps

NUM_HELD_OUT = 64
MAX_IMAGES = 500
AUTO = ["train.epochs=auto", "train.lr_scheduler_type=auto", "train.warmup_steps=null"]
FIXED = ["train.lr_scheduler_type=linear", "train.warmup_steps=0"]
RULES: dict[str, tuple[list[str], dict[str, float]]] = {
    "2 epochs": (["train.epochs=2", *FIXED], {}),
    "24 steps": (["train.epochs=1000", "train.max_steps=24", *FIXED], {}),
    "64 steps": (["train.epochs=1000", "train.max_steps=64", *FIXED], {}),
    "auto": (AUTO, {}),
    "auto, loss 0.3": (AUTO, {"LOW_LOSS": 0.3}),
    "auto, loss 0.05": (AUTO, {"LOW_LOSS": 0.05}),
    "auto, decay 16": (AUTO, {"DECAY_STEPS": 16}),
    "auto, batch 8": ([*AUTO, "train.batch_size=8"], {}),
}
"""Rule → its settings, and constants of auto_steps.py that it changes."""

OPENINGS = ("Look:", "I see this:", "Here:", "In this image:", "Well,", "What a view!", "Today:", "A memory:")
ENDINGS = (
    "How nice.",
    "That is all.",
    "I like it.",
    "Nothing else.",
    "So it goes.",
    "The end.",
    "Who knows why?",
    "Good.",
)


class Case(NamedTuple):
    images: int
    rate: float
    seed: int
    rule: str


def draw_data(folder: Path, seeds: int, *, free: bool) -> None:
    """Write held_out.csv and, for each seed, the captions of MAX_IMAGES other images. free: with words that no image
    shows, as in captions that people write."""
    rng = random.Random(1)
    (folder / "images").mkdir(parents=True)
    for name, count in [("held_out", NUM_HELD_OUT), *((f"seed-{seed}", MAX_IMAGES) for seed in range(seeds))]:
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image_path", "caption"])
            for i in range(count):
                scene = sample_scene(rng)
                draw_scene(scene).save(folder / "images" / f"{name}-{i}.png")
                words = f"{rng.choice(OPENINGS)} {write_caption(scene)} {rng.choice(ENDINGS)}"
                rows.writerow([f"images/{name}-{i}.png", words if free else write_caption(scene)])


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Train once in this process and read the figures."""
    from lorgnette.training import run as training

    overrides, constants = RULES[case.rule]
    for name, value in (CONSTANTS | constants).items():
        setattr(auto_steps, name, value)
    run_folder = folder / "-".join(map(str, case)).replace(" ", "_")
    settings = lorgnette.recipes.load_settings(
        "demo",
        [
            f"data={folder / f'seed-{case.seed}.csv'}", f"data.test={folder / 'held_out.csv'}",
            f"data.max_rows={case.images}", f"run={run_folder}", f"seed={case.seed}", "data.prompt=COCO Yes:",
            f"train.learning_rate={case.rate}", "train.eval_steps=8", "train.logging_steps=1", "train.save_steps=1000",
            "predict.metrics=exact-match", "predict.max_new_tokens=32", "predict.batch_size=64", "report_to=none",
            *overrides,
        ],
    )  # fmt: skip
    training.write_run_report = lambda *_: None  # its page is not looked at
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        lorgnette.train(settings, console=Console(file=nowhere))
    run_dir = RunDir(run_folder)
    records = run_log.read_log(run_dir.log)
    evals = run_log.select_series(records, "eval", "eval_loss")
    best_step, best = min(evals[1:], key=lambda point: (point[1], point[0]))
    answers = [json.loads(line) for line in run_dir.predictions.read_text(encoding="utf-8").splitlines()]
    num_exact = sum(row["tuned"] in row["references"] for row in answers)
    reason = next((record["reason"] for record in records if record["kind"] == "end"), None)
    shutil.rmtree(run_folder)
    return {
        **case._asdict(), "steps": int(evals[-1][0]), "reason": reason, "loss": round(evals[-1][1], 4),
        "best_loss": round(best, 4), "best_step": int(best_step), "exact": num_exact,
    }  # fmt: skip


def print_table(runs: Sequence[dict[str, Any]]) -> None:
    """One line for each number of images, learning rate and rule: means over the seeds."""
    print("| images | learning rate | rule | steps | held-out loss | at the best step | answers right of 64 |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    groups: dict[tuple[int, float, str], list[dict[str, Any]]] = {}
    for r in runs:
        groups.setdefault((r["images"], r["rate"], r["rule"]), []).append(r)
    order = list(RULES)
    for (images, rate, rule), group in sorted(groups.items(), key=lambda item: (*item[0][:2], order.index(item[0][2]))):
        steps, loss, best, exact = (fmean(r[name] for r in group) for name in ("steps", "loss", "best_loss", "exact"))
        numbers = sorted(r["exact"] for r in group)
        print(
            f"| {images} | {rate:g} | {rule} | {steps:.0f} | {loss:.3f} | {best:.3f} | {exact:.0f} "
            f"({numbers[0]} to {numbers[-1]}) |"
        )


CONSTANTS = {"LOW_LOSS": auto_steps.LOW_LOSS, "DECAY_STEPS": auto_steps.DECAY_STEPS}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--images", default="10,30,100,500")
    parser.add_argument("--rates", default="2.5e-4,5e-4,1e-3,2e-3")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rules", default=";".join(RULES), help="with semicolons")
    parser.add_argument("--free", action="store_true", help="captions with words that cannot be predicted")
    parser.add_argument("--device", help="its name, for the file")
    arguments = parser.parse_args()
    counts, rates = [int(n) for n in arguments.images.split(",")], [float(r) for r in arguments.rates.split(",")]
    rules, seeds = arguments.rules.split(";"), range(arguments.seeds)
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.exists() else []
    done = {tuple(r[field] for field in Case._fields) for r in runs}
    # The seeds last, so that a call that is cut off has compared all rules.
    cases = [Case(n, rate, seed, rule) for seed, n, rate, rule in product(seeds, counts, rates, rules)]
    results = ResultsFile(arguments.out, sys.argv, arguments.device, 1e9)
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        draw_data(Path(name) / "data", arguments.seeds, free=arguments.free)
        pending = [pool.submit(run, case, Path(name) / "data") for case in cases if case not in done]
        for future in as_completed(pending):
            if error := future.exception():
                print(f"failed: {error!r}", flush=True)
                continue
            runs.append(future.result())
            results.update(runs=runs)
            print(runs[-1], flush=True)
    print_table(runs)
    if len(runs) < len(cases):
        raise SystemExit(f"{len(cases) - len(runs)} runs failed")
