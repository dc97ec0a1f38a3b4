"""Time `check` on many distinct photographs, made from a few.

    python bench/check_speed.py make OUT --photographs FOLDER [--count 100000]
    python bench/check_speed.py run OUT --model FOLDER [--rows N] [--runs 3]

`make` writes OUT/captions.csv and OUT/images: two crops blended, recolored, with noise, in COCO's usual sizes and at
its usual file size (160 kB). `run` prints one JSON line per run, each in a process of its own: wall-clock and CPU
seconds, peak memory, and the number of cores that other processes used meanwhile. Linux only.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, ImageChops

SIZES = ((640, 480),) * 5 + ((480, 640),) * 3 + ((640, 427),) * 4 + ((640, 425), (427, 640), (500, 375))
SUBJECTS = ["dog", "kite", "clock", "train", "bench", "pizza", "giraffe", "surfer", "bus", "laptop"]
LOCATIONS = ["street", "beach", "kitchen", "field", "station", "garden", "table", "roof"]
_FOLDER_SIZE = 1000
_NOISE_SIDE = 1400


def make_data(out: Path, photographs: Path, count: int) -> None:
    parts = [range(start, min(start + 500, count)) for start in range(0, count, 500)]
    for folder in range(-(-count // _FOLDER_SIZE)):
        (out / "images" / f"{folder:03}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_make_images, out, photographs), parts))
    lines = [f"{_format_path(number)},{_write_caption(number)}\n" for number in range(count)]
    (out / "captions.csv").write_text("image_path,caption\n" + "".join(lines))


def _format_path(number: int) -> str:
    return f"images/{number // _FOLDER_SIZE:03}/{number:06}.jpg"


def _write_caption(number: int) -> str:
    rng = random.Random(number)
    return f"A {rng.choice(SUBJECTS)} near a {rng.choice(SUBJECTS)} and {number} more in a {rng.choice(LOCATIONS)}."


def _make_images(out: Path, photographs: Path, numbers: range) -> None:
    os.nice(19)
    photos = [Image.open(path).convert("RGB") for path in sorted(photographs.glob("*.jpg"))]
    noise = [Image.effect_noise((_NOISE_SIDE, _NOISE_SIDE), sigma) for sigma in (16, 24, 32)]
    for number in numbers:
        path = out / _format_path(number)
        if not path.exists():
            rng = random.Random(number)
            make_image(rng, photos, noise).save(path, quality=rng.randint(85, 94))


def make_image(rng: random.Random, photos: list[Image.Image], noise: list[Image.Image]) -> Image.Image:
    size = rng.choice(SIZES)
    first, second = (_crop(rng, photo, size) for photo in rng.sample(photos, 2))
    image = Image.blend(first, second, rng.uniform(0.2, 0.8))
    curves = [[round(255 * (level / 255) ** gamma) for level in range(256)] for gamma in _sample_gammas(rng)]
    image = image.point([level for curve in curves for level in curve])
    left, top = (rng.randrange(_NOISE_SIDE - side) for side in size)
    grain = rng.choice(noise).crop((left, top, left + size[0], top + size[1])).convert("RGB")
    return ImageChops.add(image, grain, 1, -128)


def _sample_gammas(rng: random.Random) -> list[float]:
    return [rng.uniform(0.6, 1.6) for _ in range(3)]


def _crop(rng: random.Random, photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    share = rng.uniform(0.5, 0.9)
    width, height = (round(side * share) for side in photo.size)
    left, top = rng.randrange(photo.width - width), rng.randrange(photo.height - height)
    return photo.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def run(out: Path, model: str, rows: int | None, runs: int) -> None:
    command = [sys.executable, "-m", "lorgnette", "check", str(out / "captions.csv"), f"model={model}"]
    command += ["--out", str(out / "check.html"), *(["--rows", str(rows)] if rows else [])]
    for _ in range(runs):
        start, busy = time.perf_counter(), _read_busy_seconds()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        clock = time.perf_counter() - start
        own = usage.ru_utime + usage.ru_stime
        others = (_read_busy_seconds() - busy - own) / clock
        figures = {
            "status": os.waitstatus_to_exitcode(status),
            "clock_s": round(clock, 1),
            "user_s": round(usage.ru_utime, 1),
            "system_s": round(usage.ru_stime, 1),
            "peak_mb": round(usage.ru_maxrss / 1024),
            "cores": os.cpu_count(),
            "cores_of_others": round(max(0.0, others), 2),
        }
        print(json.dumps(figures), flush=True)


def _read_busy_seconds() -> float:
    """Seconds that all cores together have worked, including for the machine's host ("steal")."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("make")
    make.set_defaults(command=make_data)
    make.add_argument("--photographs", type=Path, required=True)
    make.add_argument("--count", type=int, default=100_000)
    measure = commands.add_parser("run")
    measure.set_defaults(command=run)
    measure.add_argument("--model", required=True)
    measure.add_argument("--rows", type=int)
    measure.add_argument("--runs", type=int, default=3)
    for command in (make, measure):
        command.add_argument("out", type=Path)
    arguments = vars(parser.parse_args())
    arguments.pop("command")(**arguments)


if __name__ == "__main__":
    main()
