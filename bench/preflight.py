"""Time `check` over many distinct photographs, made from a few.

    python bench/preflight.py make OUT --photographs FOLDER [--count 100000]
    python bench/preflight.py run OUT --model FOLDER [--rows N] [--runs 3]

`make` draws OUT/captions.csv and OUT/pictures: two crops blended, recoloured, with noise, in COCO's usual sizes and at
its usual weight (160 kB). `run` prints one JSON line a run, each a process of its own: seconds by the clock and of the
processor, peak memory, and the share of the machine's cores that everybody else had meanwhile. Linux.
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
PLACES = ["street", "beach", "kitchen", "field", "station", "garden", "table", "roof"]
_FOLDER = 1000
_NOISE = 1400


def make(out: Path, photographs: Path, count: int) -> None:
    parts = [range(at, min(at + 500, count)) for at in range(0, count, 500)]
    for folder in range(-(-count // _FOLDER)):
        (out / "pictures" / f"{folder:03}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_made, out, photographs), parts))
    lines = [f"{_place(number)},{_caption(number)}\n" for number in range(count)]
    (out / "captions.csv").write_text("image_path,caption\n" + "".join(lines))


def _place(number: int) -> str:
    return f"pictures/{number // _FOLDER:03}/{number:06}.jpg"


def _caption(number: int) -> str:
    chance = random.Random(number)
    return (
        f"A {chance.choice(SUBJECTS)} near a {chance.choice(SUBJECTS)} and {number} more in a {chance.choice(PLACES)}."
    )


def _made(out: Path, photographs: Path, numbers: range) -> None:
    os.nice(19)
    photos = [Image.open(path).convert("RGB") for path in sorted(photographs.glob("*.jpg"))]
    noise = [Image.effect_noise((_NOISE, _NOISE), sigma) for sigma in (16, 24, 32)]
    for number in numbers:
        path = out / _place(number)
        if not path.exists():
            chance = random.Random(number)
            drawn(chance, photos, noise).save(path, quality=chance.randint(85, 94))


def drawn(chance: random.Random, photos: list[Image.Image], noise: list[Image.Image]) -> Image.Image:
    size = chance.choice(SIZES)
    one, other = (_crop(chance, photo, size) for photo in chance.sample(photos, 2))
    picture = Image.blend(one, other, chance.uniform(0.2, 0.8))
    curves = [[round(255 * (level / 255) ** power) for level in range(256)] for power in _powers(chance)]
    picture = picture.point([level for curve in curves for level in curve])
    left, top = (chance.randrange(_NOISE - side) for side in size)
    grain = chance.choice(noise).crop((left, top, left + size[0], top + size[1])).convert("RGB")
    return ImageChops.add(picture, grain, 1, -128)


def _powers(chance: random.Random) -> list[float]:
    return [chance.uniform(0.6, 1.6) for _ in range(3)]


def _crop(chance: random.Random, photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    share = chance.uniform(0.5, 0.9)
    width, height = (round(side * share) for side in photo.size)
    left, top = chance.randrange(photo.width - width), chance.randrange(photo.height - height)
    return photo.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))


def run(out: Path, model: str, rows: int | None, runs: int) -> None:
    command = [sys.executable, "-m", "lorgnette", "check", str(out / "captions.csv"), f"model={model}"]
    command += ["--out", str(out / "check.html"), *(["--rows", str(rows)] if rows else [])]
    for _ in range(runs):
        begun, machine = time.perf_counter(), _busy()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        clock = time.perf_counter() - begun
        own = used.ru_utime + used.ru_stime
        others = (_busy() - machine - own) / clock
        figures = {
            "status": os.waitstatus_to_exitcode(status),
            "clock_s": round(clock, 1),
            "user_s": round(used.ru_utime, 1),
            "system_s": round(used.ru_stime, 1),
            "peak_mb": round(used.ru_maxrss / 1024),
            "cores": os.cpu_count(),
            "cores_of_others": round(max(0.0, others), 2),
        }
        print(json.dumps(figures), flush=True)


def _busy() -> float:
    """Seconds that all cores together have been at work, those of the machine's host among them ("steal")."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    making = verbs.add_parser("make")
    making.set_defaults(verb=make)
    making.add_argument("--photographs", type=Path, required=True)
    making.add_argument("--count", type=int, default=100_000)
    running = verbs.add_parser("run")
    running.set_defaults(verb=run)
    running.add_argument("--model", required=True)
    running.add_argument("--rows", type=int)
    running.add_argument("--runs", type=int, default=3)
    for each in (making, running):
        each.add_argument("out", type=Path)
    chosen = vars(parser.parse_args())
    chosen.pop("verb")(**chosen)


if __name__ == "__main__":
    main()
