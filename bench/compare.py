"""Run the benchmark job on lorgnette and on its peers, each run a process of its own, all on this machine, now.

    python bench/compare.py JOB --out results.json --peers transformers,trl,… --budget 550 --wheels DIR

A peer's packages are installed beside it from DIR/PEER/**.whl; whatever else it needs must be there already. After
every run the results are written anew, and nobody runs a second time before everybody ran once: what the budget cuts
off are repeats. Compiled kernels are kept from run to run in one place, which is empty at first. So the first run of
each stands apart where there are more, and the figures are the medians of the others.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
from kept import Kept
from process import FailedError
from timed import HERE, NO_DROPOUT, OURS, Run, installed, ours, peer

import lorgnette
from lorgnette import data
from lorgnette.config import ProcessorSettings
from lorgnette.processing.processor import Processor

PEERS = tuple(path.stem.removeprefix("by_") for path in sorted((HERE / "peers").glob("by_*.py")))
HELD_OUT, SIDE, EPOCHS, RANK = 4, 280, 2, 64
SHORTEST = 30
"""Seconds below which no first run is begun: none was ever as quick to its figures."""
SLOWER = 1.2
"""Times the last run of the same that must be left for another."""
FIGURES = ("prep_s", "training_s", "saved_s", "samples_per_s", "steady_samples_per_s", "tokens_per_s",
           "steady_tokens_per_s", "share", "steady_share", "peak_gib", "reserved_gib", "launch_us")  # fmt: skip


def rated(run: Run, job: dict[str, float], ceiling: float | None) -> Run:
    """The run with its rates, whole and after step 5; share: of the measured matmul ceiling, LLM FLOPs only."""
    if "failed" in run:
        return run
    steps = EPOCHS * -(-job["samples"] // job["samples_a_step"])
    if run["steps"] != steps:
        return {"failed": f"took {run['steps']} steps, not {steps}"}
    tokens = job["tokens"] / job["samples"]
    rates = {"": job["samples"] * EPOCHS / run["training_s"]}
    if run["steady_s"]:
        rates["steady_"] = run["steady_steps"] * job["samples_a_step"] / run["steady_s"]
    for when, samples in rates.items():
        run[f"{when}samples_per_s"] = samples
        run[f"{when}tokens_per_s"] = samples * tokens
        if ceiling:
            run[f"{when}share"] = samples * tokens * job["flop_per_token"] / ceiling / 1e12
    return run


def counted(job: Path) -> dict[str, float]:
    """The job's size, the same for everyone: padding is nobody's work."""
    encoder = Processor.from_folder(job / "model", ProcessorSettings(image_size=(SIDE, SIDE)))
    lengths = [len(encoder.encode(example).input_ids) for example in data.read(job / "captions.csv")][:-HELD_OUT]
    config = json.loads((job / "model" / "config.json").read_text())
    return {
        "samples": len(lengths),
        "samples_a_step": 16,
        "tokens": sum(lengths),
        "flop_per_token": flop_per_token(config, RANK),
    }


def flop_per_token(config: dict[str, Any], rank: int) -> int:
    """4 for each frozen weight of the decoder's projections (forward, and backward to the input), 6 for each of LoRA's
    (its gradient too). Embedding, head, attention and vision tower are not counted."""
    width, mlp = config["hidden_size"], config["intermediate_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = [(width, width), (width, keys), (width, keys), (width, width), (width, mlp), (width, mlp), (mlp, width)]
    return config["num_hidden_layers"] * sum(4 * a * b + 6 * rank * (a + b) for a, b in shapes)


def resized(job: Path, folder: Path) -> None:
    """The training samples with their pictures at 280×280 already, which spares the peers the work, not lorgnette."""
    folder.mkdir(parents=True, exist_ok=True)
    with (job / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:-HELD_OUT]

    def small(row: dict[str, str]) -> dict[str, str]:
        name = Path(row["image_path"]).name
        picture = PIL.Image.open(job / row["image_path"]).convert("RGB")
        picture.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC).save(folder / name, quality=95)
        return row | {"image_path": name}

    with ThreadPoolExecutor() as pool, (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["image_path", "caption"])
        out.writeheader()
        out.writerows(pool.map(small, rows))


def summary(runs: list[Run]) -> dict[str, Run]:
    """By name: medians over its runs (without the first, where there are more), and times lorgnette's training time:
    against its later runs where the row has later runs, against its first where the first is all there is."""
    table: dict[str, Run] = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        of = [run for run in runs if run["name"] == name]
        good = [run for run in of if "failed" not in run]
        if not good:
            table[name] = {"failed": of[-1]["failed"]}
            continue
        rest = good[1:] or good
        measured = {figure: [run[figure] for run in rest if run.get(figure) is not None] for figure in FIGURES}
        medians = {figure: statistics.median(values) for figure, values in measured.items() if values}
        table[name] = medians | {"runs": len(rest), "first_training_s": good[0]["training_s"], "cold": len(good) == 1}
    if "training_s" in (base := table.get(OURS, {})):
        for row in (row for row in table.values() if "training_s" in row):
            against = "first_training_s" if row["cold"] else "training_s"
            row["times_ours"] = row["training_s"] / base[against]
    return table


def plan(peers: list[str], repeat: int, own: list[str], times: int, once: list[str]) -> list[str]:
    """The names of the runs in their order: in rounds, so that a machine that drifts drifts for all."""
    rounds = [(own if n < times else []) + (peers if n < repeat else []) for n in range(max(repeat, times))]
    return [name for n, names in enumerate(rounds) for name in names if n == 0 or name not in once]


def race(given: argparse.Namespace) -> None:
    end = time.monotonic() + given.budget
    work, job = given.work.resolve(), given.job.resolve()
    shutil.rmtree(work / "kernels", ignore_errors=True)
    resized(job, work / "pictures")
    sites, runs = prepared(given.peers, given.wheels, work)
    told = subprocess.run([sys.executable, str(HERE / "ceiling.py")], capture_output=True, text=True, check=True)
    machine = json.loads(told.stdout)
    print(told.stdout, flush=True)
    size = counted(job)
    kept = Kept(given.out, ["bench/compare.py", *given.peers], machine["gpu"], end - time.monotonic())
    versions = {OURS: {"lorgnette": lorgnette.__version__, "torch": machine["torch"]}}
    kept.keep(summary=summary(runs), runs=runs, job=size, machine=machine, versions=versions)
    for name in plan(given.peers, given.repeat, given.own, given.times, given.once):
        if not due(name, runs, kept):
            continue
        kind, limit = name.removesuffix(NO_DROPOUT), min(given.limit, kept.left)
        before = kept.left
        run = ours(name, job, work, limit) if kind == OURS else peer(name, job, work, sites[kind], limit)
        versions[kind] = run.pop("versions", versions.get(kind, {}))
        runs.append({"name": name, "took_s": before - kept.left, **rated(run, size, machine["matmul_tflops"])})
        print(json.dumps({key: value for key, value in runs[-1].items() if key != "losses"}), flush=True)
        kept.keep(summary=summary(runs), runs=runs, versions=versions)


def due(name: str, runs: list[Run], kept: Kept) -> bool:
    """Whether it is begun: not where it failed before, and not where too little time is left."""
    before = [run for run in runs if run["name"] == name]
    if any("failed" in run for run in before):
        return False
    if kept.fits(SLOWER * before[-1]["took_s"] if before else SHORTEST, name):
        return True
    if not before:
        runs.append({"name": name, "failed": "not run: the time that was given for all was over"})
        kept.keep(summary=summary(runs), runs=runs)
    return False


def prepared(names: list[str], wheels: Path | None, work: Path) -> tuple[dict[str, Path], list[Run]]:
    """Each peer's folder of packages; a run that failed for each whose packages cannot be installed."""
    failed: dict[str, str] = {}

    def one(kind: str) -> Path:
        try:
            return installed(kind, wheels, work)
        except FailedError as error:
            failed[kind] = f"its packages cannot be installed: {error}"
            return work

    kinds = sorted({name.removesuffix(NO_DROPOUT) for name in names})
    with ThreadPoolExecutor() as pool:
        sites = dict(zip(kinds, pool.map(one, kinds), strict=True))
    said = {name: failed.get(name.removesuffix(NO_DROPOUT)) for name in names}
    return sites, [{"name": name, "failed": why} for name, why in said.items() if why]


def names(text: str) -> list[str]:
    given = [name for name in text.split(",") if name]
    unknown = [name for name in given if name.removesuffix(NO_DROPOUT) not in (*PEERS, OURS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such peer; there are {', '.join(PEERS)}")
    return given


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", type=names, default=list(PEERS), help="NAME or NAME-dropout0, between commas")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each peer")
    parser.add_argument("--once", type=names, default=["unsloth", "unsloth-dropout0"], help="peers that run only once")
    parser.add_argument("--own", type=names, default=[OURS], help="lorgnette, lorgnette-dropout0, or both")
    parser.add_argument("--times", type=int, default=4, help="runs of lorgnette")
    parser.add_argument("--wheels", type=Path, help="a folder with a folder of wheels for each peer")
    parser.add_argument("--work", type=Path, default=Path("bench/out/compare"))
    parser.add_argument("--limit", type=float, default=200, help="seconds a run may take")
    parser.add_argument("--budget", type=float, default=3600, help="seconds everything may take")
    race(parser.parse_args())
