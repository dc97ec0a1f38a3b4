"""Run the benchmark job on lorgnette and on its peers, each run a process of its own, all on this machine, now.

    python bench/compare.py JOB --out results.json --peers transformers,trl,… --budget 550 --wheels DIR

A peer's own packages are installed from DIR/PEER/**.whl; everything else must be installed already. The results are
written after every run. Everyone runs once before anyone runs twice, so the budget only cuts off repeats. Compiled
kernels are cached from run to run in one folder, empty at first. So if there are more runs, the first one of each is
reported separately, and the figures are the medians of the others.
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
from process import FailedError
from results_file import ResultsFile
from run_one import HERE, NO_DROPOUT, OURS, Run, install_peer, run_ours, run_peer

import lorgnette
from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.registry import parse_configs
from lorgnette.processing.processor import Processor

PEERS = tuple(path.stem.removeprefix("by_") for path in sorted((HERE / "peers").glob("by_*.py")))
NUM_HELD_OUT, SIDE, EPOCHS, RANK = 4, 280, 2, 64
MIN_SECONDS = 30
"""No first run starts with less time left: none was ever faster."""
REPEAT_FACTOR = 1.2
"""A repeat starts only if this many times the seconds of its last run are left."""
FIGURES = ("prep_s", "training_s", "saved_s", "samples_per_s", "steady_samples_per_s", "tokens_per_s",
           "steady_tokens_per_s", "share", "steady_share", "peak_gib", "reserved_gib", "launch_us")  # fmt: skip


def add_rates(run: Run, job: dict[str, float], ceiling: float | None) -> Run:
    """Add rates of the whole run and of the steps after 5; share: of the measured matmul ceiling, LLM FLOPs only."""
    if "failed" in run:
        return run
    steps = EPOCHS * -(-job["samples"] // job["samples_a_step"])
    if run["steps"] != steps:
        return {"failed": f"took {run['steps']} steps, not {steps}"}
    tokens = job["tokens"] / job["samples"]
    rates = {"": job["samples"] * EPOCHS / run["training_s"]}
    if run["steady_s"]:
        rates["steady_"] = run["steady_steps"] * job["samples_a_step"] / run["steady_s"]
    for prefix, samples in rates.items():
        run[f"{prefix}samples_per_s"] = samples
        run[f"{prefix}tokens_per_s"] = samples * tokens
        if ceiling:
            run[f"{prefix}share"] = samples * tokens * job["flop_per_token"] / ceiling / 1e12
    return run


def measure_job(job: Path) -> dict[str, float]:
    """The size of the job, without padding: the same for everyone."""
    processor = Processor.from_folder(job / "model", ProcessorSettings(image_size=(SIDE, SIDE)))
    encoded = [processor.encode(example) for example in data.read(job / "captions.csv", prompt="COCO Yes:")]
    lengths = [len(example.input_ids) for example in encoded][:-NUM_HELD_OUT]
    config = json.loads((job / "model" / "config.json").read_text())
    return {
        "samples": len(lengths),
        "samples_a_step": 16,
        "tokens": sum(lengths),
        "flop_per_token": compute_flop_per_token(config, RANK),
        "side": encoded[0].grids[0].h * config["vision_config"]["patch_size"],
    }


def compute_flop_per_token(config: dict[str, Any], rank: int) -> int:
    """4 per frozen weight of the decoder's projections (forward, and backward to the input), 6 per LoRA weight (its
    gradient too). Embedding, head, attention and vision tower do not count."""
    text, _ = parse_configs(config)
    frozen = text.num_layers * sum(outputs * inputs for outputs, inputs in text.linear_shapes.values())
    return 4 * frozen + 6 * (AdapterShape.from_settings(text, LoraSettings(rank=rank)).num_params if rank else 0)


def write_resized(job: Path, folder: Path, side: int) -> None:
    """Write the training samples with images at the job's size: it saves the peers the work, not lorgnette."""
    folder.mkdir(parents=True, exist_ok=True)
    with (job / "captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:-NUM_HELD_OUT]

    def resize(row: dict[str, str]) -> dict[str, str]:
        name = Path(row["image_path"]).name
        image = PIL.Image.open(job / row["image_path"]).convert("RGB")
        image.resize((side, side), PIL.Image.Resampling.BICUBIC).save(folder / name, quality=95)
        return row | {"image_path": name}

    with ThreadPoolExecutor() as pool, (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["image_path", "caption"])
        out.writeheader()
        out.writerows(pool.map(resize, rows))


def summarize(runs: list[Run]) -> dict[str, Run]:
    """By name: medians over its runs (without the first, if there are more), and the training time relative to
    lorgnette's: to its later runs if the row has later runs, to its first run if the first is the only one."""
    table: dict[str, Run] = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        own = [run for run in runs if run["name"] == name]
        good = [run for run in own if "failed" not in run]
        if not good:
            table[name] = {"failed": own[-1]["failed"]}
            continue
        rest = good[1:] or good
        values_by_figure = {figure: [run[figure] for run in rest if run.get(figure) is not None] for figure in FIGURES}
        medians = {figure: statistics.median(values) for figure, values in values_by_figure.items() if values}
        table[name] = medians | {"runs": len(rest), "first_training_s": good[0]["training_s"], "cold": len(good) == 1}
    if "training_s" in (base := table.get(OURS, {})):
        for row in (row for row in table.values() if "training_s" in row):
            reference = "first_training_s" if row["cold"] else "training_s"
            row["times_ours"] = row["training_s"] / base[reference]
    return table


def order_runs(peers: list[str], repeat: int, own: list[str], times: int, once: list[str]) -> list[str]:
    """The names of the runs in order: in rounds, so that a drift of the machine affects all."""
    rounds = [(own if n < times else []) + (peers if n < repeat else []) for n in range(max(repeat, times))]
    return [name for n, names in enumerate(rounds) for name in names if n == 0 or name not in once]


def run_all(arguments: argparse.Namespace) -> None:
    end = time.monotonic() + arguments.budget
    work, job = arguments.work.resolve(), arguments.job.resolve()
    shutil.rmtree(work / "kernels", ignore_errors=True)
    size = measure_job(job)
    write_resized(job, work / "images", int(size["side"]))
    sites, runs = install_peers(arguments.peers, arguments.wheels, work)
    output = subprocess.run([sys.executable, str(HERE / "machine.py")], capture_output=True, text=True, check=True)
    machine = json.loads(output.stdout)
    print(output.stdout, flush=True)
    results = ResultsFile(arguments.out, ["bench/compare.py", *arguments.peers], machine["gpu"], end - time.monotonic())
    versions = {OURS: {"lorgnette": lorgnette.__version__, "torch": machine["torch"]}}
    results.update(summary=summarize(runs), runs=runs, job=size, machine=machine, versions=versions)
    for name in order_runs(arguments.peers, arguments.repeat, arguments.own, arguments.times, arguments.once):
        if not is_due(name, runs, results):
            continue
        kind, limit = name.removesuffix(NO_DROPOUT), min(arguments.limit, results.seconds_left)
        before = results.seconds_left
        run = run_ours(name, job, work, limit) if kind == OURS else run_peer(name, job, work, sites[kind], limit)
        versions[kind] = run.pop("versions", versions.get(kind, {}))
        runs.append(
            {"name": name, "took_s": before - results.seconds_left, **add_rates(run, size, machine["matmul_tflops"])}
        )
        print(json.dumps({key: value for key, value in runs[-1].items() if key != "losses"}), flush=True)
        results.update(summary=summarize(runs), runs=runs, versions=versions)


def is_due(name: str, runs: list[Run], results: ResultsFile) -> bool:
    """Whether to start it: not if it failed before, and not if too little time is left."""
    before = [run for run in runs if run["name"] == name]
    if any("failed" in run for run in before):
        return False
    if results.fits(REPEAT_FACTOR * before[-1]["took_s"] if before else MIN_SECONDS, name):
        return True
    if not before:
        runs.append({"name": name, "failed": "not run: no time was left"})
        results.update(summary=summarize(runs), runs=runs)
    return False


def install_peers(names: list[str], wheels: Path | None, work: Path) -> tuple[dict[str, Path], list[Run]]:
    """Return each peer's folder of packages, and a failed run for each peer whose packages cannot be installed."""
    failed: dict[str, str] = {}

    def install(kind: str) -> Path:
        try:
            return install_peer(kind, wheels, work)
        except FailedError as error:
            failed[kind] = f"cannot install its packages: {error}"
            return work

    kinds = sorted({name.removesuffix(NO_DROPOUT) for name in names})
    with ThreadPoolExecutor() as pool:
        sites = dict(zip(kinds, pool.map(install, kinds), strict=True))
    failures = {name: failed.get(name.removesuffix(NO_DROPOUT)) for name in names}
    return sites, [{"name": name, "failed": error} for name, error in failures.items() if error]


def parse_names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name.removesuffix(NO_DROPOUT) not in (*PEERS, OURS)]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such peer; the peers are {', '.join(PEERS)}")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--peers", type=parse_names, default=list(PEERS), help="NAME or NAME-dropout0, separated by commas"
    )
    parser.add_argument("--repeat", type=int, default=2, help="runs of each peer")
    parser.add_argument("--once", type=parse_names, default=["unsloth", "unsloth-dropout0"], help="peers that run once")
    parser.add_argument("--own", type=parse_names, default=[OURS], help="lorgnette, lorgnette-dropout0, or both")
    parser.add_argument("--times", type=int, default=4, help="runs of lorgnette")
    parser.add_argument("--wheels", type=Path, help="a folder with a folder of wheels for each peer")
    parser.add_argument("--work", type=Path, default=Path("bench/out/compare"))
    parser.add_argument("--limit", type=float, default=200, help="seconds a run may take")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for everything")
    run_all(parser.parse_args())
