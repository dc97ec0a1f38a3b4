"""A data set of many rows: seconds until it is read, checked and encoded, and the memory that its rows take.

    python bench/rows.py make OUT --rows 1000000   # a CSV of captions, five to an image; small JPEGs
    python bench/rows.py run OUT --out FILE        # `train`'s data stage and `check`, each a process of its own

The JPEGs are of one color and a kilobyte, and differ in a comment. Captions are sentences of 60 words, 10 to 25 tokens.
The seconds are those of the process, from its start; memory is the peak of the process, and what it holds when its rows
are encoded, without the modules that it has imported before.
"""

import argparse
import csv
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

CAPTIONS_PER_IMAGE = 5
IMAGES_PER_FOLDER = 10_000
NOUNS = [
    "man", "woman", "dog", "cat", "train", "bus", "table", "child", "group", "plate", "street", "field",
    "horse", "boat", "bench", "kite", "pizza", "phone",
]  # fmt: skip
ADJECTIVES = [
    "small", "red", "old", "wooden", "large", "young", "white", "busy", "green", "tall", "open", "black",
    "shiny", "empty", "colorful", "blue",
]  # fmt: skip
VERBS = [
    "standing", "sitting", "riding", "walking", "looking", "holding", "flying", "parked", "lying", "playing",
    "waiting", "running",
]  # fmt: skip
PLACES = [
    "beach", "road", "kitchen", "park", "station", "river", "building", "window", "fence", "hill", "lake",
    "market", "harbor", "bridge",
]  # fmt: skip


def make(folder: Path, num_rows: int) -> None:
    """Write OUT/captions.csv and OUT/images/*/*.jpg."""
    from PIL import Image

    num_images = -(-num_rows // CAPTIONS_PER_IMAGE)
    rng, names, content = random.Random(0), list[str](), BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 60)).save(content, "JPEG", quality=50)
    start, rest = content.getvalue()[:2], content.getvalue()[2:]
    for number in range(num_images):
        name = f"images/{number // IMAGES_PER_FOLDER:03}/{number:012}.jpg"
        path = folder / name
        if number % IMAGES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        # A comment of its own: no file has the bytes of another.
        comment = f"{number:012}".encode() + bytes(rng.randrange(100))
        path.write_bytes(start + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + rest)
        names.append(name)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "caption"])
        rows = itertools.product(names, range(CAPTIONS_PER_IMAGE))
        writer.writerows([name, write_caption(rng)] for name, _ in itertools.islice(rows, num_rows))


def write_caption(rng: random.Random) -> str:
    things = [f"a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(rng.randrange(2, 4))]
    text = f"{things[0]} {rng.choice(VERBS)} near {' and '.join(things[1:])} by the {rng.choice(PLACES)}."
    return text[0].upper() + text[1:]


def read(table: Path, model: str, num_rows: int | None) -> dict[str, Any]:
    """What `train` does with the data before it imports torch. Runs in a process of its own."""
    from lorgnette.config import DataSettings, Settings
    from lorgnette.report.console import Terminal
    from lorgnette.training.data_module import TrainingData

    settings = Settings(model=model, data=DataSettings(path=table, max_rows=num_rows))
    before, start = read_memory(), time.perf_counter()
    data = TrainingData.load(settings, Terminal(), needs_weights=False)
    loaded = time.perf_counter()
    data.choose_metrics(settings, Terminal())
    chosen = time.perf_counter()
    data.hash_inputs()
    hashed = time.perf_counter()
    num_rows = len(data.examples) + len(data.held_out)
    held = read_memory() - before
    return {
        "rows": num_rows,
        "load_s": round(loaded - start, 2),
        "choose_metrics_s": round(chosen - loaded, 2),
        "hash_inputs_s": round(hashed - chosen, 2),
        "rows_per_s": round(num_rows / (loaded - start)),
        "held_mb": round(held / 1e6, 1),
        "held_bytes_per_row": round(held / num_rows),
        **describe_process(),
    }


def check(table: Path, model: str, num_rows: int | None) -> dict[str, Any]:
    """`lorgnette check`, without the comparison of pixels. Runs in a process of its own."""
    from lorgnette.commands.check import check as check_data

    start = time.perf_counter()
    report = check_data(table, rows=num_rows, model=model, look_alikes=False)
    seconds = time.perf_counter() - start
    return {"rows": report.data_report.num_rows, "check_s": round(seconds, 2), **describe_process()}


def read_memory() -> int:
    """Bytes that this process holds by itself."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def describe_process() -> dict[str, float]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "own_cpu_s": round(own.ru_utime + own.ru_stime, 1),
        "children_cpu_s": round(children.ru_utime + children.ru_stime, 1),
        "peak_mb": round(own.ru_maxrss / 1e3),
    }


def run(folder: Path, model: str, num_rows: int | None, out: Path | None, parts: list[str]) -> None:
    """Each part in a process of its own; its figures are the last line that it prints."""
    results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    for part in parts:
        words = [sys.executable, __file__, part, str(folder), "--model", model]
        words += ["--rows", str(num_rows)] if num_rows else []
        start = time.perf_counter()
        done = subprocess.run(words, check=False, stdout=subprocess.PIPE, text=True)
        lines = done.stdout.splitlines()
        figures = json.loads(lines[-1]) if done.returncode == 0 else {"failed": lines[-3:]}
        results[part] = {"process_s": round(time.perf_counter() - start, 2), **figures}
        print(part, json.dumps(results[part]), flush=True)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("make", "run", "read", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, help="rows to make; the first rows to read")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--parts", default="read,check")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.task == "make":
        make(args.folder, args.rows or 1_000_000)
    elif args.task == "run":
        run(args.folder, args.model, args.rows, args.out, args.parts.split(","))
    else:
        function = read if args.task == "read" else check
        print(json.dumps(function(args.folder / "captions.csv", args.model, args.rows)))


if __name__ == "__main__":
    main()
