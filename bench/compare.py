"""Run the benchmark job on lorgnette and on its peers, each run a process of its own, all on this machine, now.

    python bench/compare.py JOB --out results.json --peers transformers,trl,… --budget 550 --wheels DIR

A peer's own packages, listed in peers/packages/PEER.txt, are installed from the wheels in DIR; everything else must be
installed already. --baseline CHECKOUT is an older version of lorgnette, which runs in turns with this one, `baseline`.

The results are written after every run. Everyone runs once before anyone runs twice, so the budget only cuts off
repeats. Compiled kernels are kept from run to run, and none are there at first: the first run of each is reported
separately (summary.py). In the end trained_loss.py compares the adapters of the last runs with fp32's; --judge is the
seconds kept for it, 0 for none of it.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import process
from process import FailedError
from results_file import ResultsFile
from run_one import HERE, NO_DROPOUT, find_adapter, install_peer, run_baseline, run_ours, run_peer
from start import BATCH_SIZE, EPOCHS, RANK, order_examples, write_start
from summary import BASELINE, OURS, Run, compare_versions, compare_with_fastest_peer, summarize

import lorgnette
from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.registry import parse_configs
from lorgnette.processing.processor import Processor

PEERS = tuple(path.stem.removeprefix("by_") for path in sorted((HERE / "peers").glob("by_*.py")))
NUM_HELD_OUT, SIDE = 4, 280
MIN_SECONDS = 30
"""No first run starts with less time left: none was ever faster."""
MAX_PADDING = 0.2
"""A peer's share of padding in the first step. With more, or with less than none, it trains on other tokens."""
REPEAT_FACTOR = 1.2
"""A repeat starts only if this many times the seconds of its last run are left."""


def add_rates(run: Run, job: dict[str, float], ceiling: float | None) -> Run:
    """Add rates of the whole run and of the steps after 5; share: of the measured matmul ceiling, LLM FLOPs only."""
    if "failed" in run:
        return run
    steps = EPOCHS * -(-job["samples"] // job["samples_a_step"])
    if run["steps"] != steps:
        return {"failed": f"took {run['steps']} steps, not {steps}"}
    tokens = job["first_step_tokens"]
    if not tokens <= (run.get("first_step_tokens") or tokens) <= (1 + MAX_PADDING) * tokens:
        return {
            "failed": f"computed {run['first_step_tokens']} tokens in the first step, not {tokens} and some padding"
        }
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
        "first_step_tokens": sum(lengths[index] for index in order_examples(len(lengths))[0][:BATCH_SIZE]),
        "samples_a_step": BATCH_SIZE,
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


def order_runs(peers: list[str], repeat: int, own: list[str], times: int, once: list[str]) -> list[str]:
    """The names of the runs in order: in rounds, so that a drift of the machine affects all."""
    rounds = [(own if n < times else []) + (peers if n < repeat else []) for n in range(max(repeat, times))]
    return [name for n, names in enumerate(rounds) for name in names if n == 0 or name not in once]


def run_all(arguments: argparse.Namespace) -> None:
    end = time.monotonic() + arguments.budget
    work, job = arguments.work.resolve(), arguments.job.resolve()
    for folder in (work / "kernels", work / BASELINE, work / "cache"):
        shutil.rmtree(folder, ignore_errors=True)
    size = measure_job(job)
    write_resized(job, work / "images", int(size["side"]))
    write_start(job / "model", int(size["samples"]), work / "start")
    own = [*arguments.own, *([BASELINE] if arguments.baseline else [])]
    sites, runs = install_peers(arguments.peers, arguments.wheels, work)
    output = subprocess.run([sys.executable, str(HERE / "machine.py")], capture_output=True, text=True, check=True)
    machine = json.loads(output.stdout)
    print(output.stdout, flush=True)
    results = ResultsFile(arguments.out, ["bench/compare.py", *arguments.peers], machine["gpu"], end - time.monotonic())
    versions = {OURS: {"lorgnette": lorgnette.__version__, "torch": machine["torch"]}}
    results.update(**summarize_all(runs), runs=runs, job=size, machine=machine, versions=versions)
    for name in order_runs(arguments.peers, arguments.repeat, own, arguments.times, arguments.once):
        if not is_due(name, runs, results, arguments.judge):
            continue
        kind, limit = name.removesuffix(NO_DROPOUT), min(arguments.limit, results.seconds_left - arguments.judge)
        before = results.seconds_left
        if kind == OURS:
            run = run_ours(name, job, work, limit)
        elif kind == BASELINE:
            run = run_baseline(arguments.baseline.resolve(), job, work, limit)
        else:
            run = run_peer(name, job, work, sites[kind], limit)
        versions[kind] = run.pop("versions", versions.get(kind, {}))
        runs.append(
            {"name": name, "took_s": before - results.seconds_left, **add_rates(run, size, machine["matmul_tflops"])}
        )
        print(
            json.dumps({key: value for key, value in runs[-1].items() if key not in ("losses", "timeline")}), flush=True
        )
        results.update(**summarize_all(runs), runs=runs, versions=versions)
    if arguments.judge and results.seconds_left > 0:
        results.update(trained_loss=judge_adapters(job, work, runs, results.seconds_left))


def summarize_all(runs: list[Run]) -> dict[str, Any]:
    table = summarize(runs)
    return {
        "summary": table, "versions_compared": compare_versions(table),
        "fastest_peer": compare_with_fastest_peer(table),
    }  # fmt: skip


def judge_adapters(job: Path, work: Path, runs: list[Run], limit: float) -> dict[str, Any]:
    """The figures of trained_loss.py for the adapters of all last runs with dropout, or why there are none."""
    names = {run["name"] for run in runs if "saved_s" in run and not run["name"].endswith(NO_DROPOUT)}
    adapters = {name: find_adapter(name, work) for name in sorted(names)}
    out = work / "trained_loss.json"
    out.unlink(missing_ok=True)
    words = [str(job), *(f"{name}={folder}" for name, folder in adapters.items()), "--out", str(out)]
    command = [sys.executable, str(HERE / "trained_loss.py"), *words, "--budget", str(limit)]
    reason = None
    try:
        process.run(command, work / "trained_loss.txt", limit)
    except FailedError as error:
        reason = str(error)
    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    figures.pop("made_with", None)
    return figures | ({"failed": reason} if reason else {})


def is_due(name: str, runs: list[Run], results: ResultsFile, reserved: float = 0) -> bool:
    """Whether to start it: not if it failed before, nor if too little time is left beside the `reserved` seconds."""
    before = [run for run in runs if run["name"] == name]
    if any("failed" in run for run in before):
        return False
    if results.fits(reserved + (REPEAT_FACTOR * before[-1]["took_s"] if before else MIN_SECONDS), name):
        return True
    if not before:
        runs.append({"name": name, "failed": "not run: no time was left"})
        results.update(**summarize_all(runs), runs=runs)
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
    parser.add_argument("--times", type=int, default=4, help="runs of lorgnette and of its older version")
    parser.add_argument("--baseline", type=Path, help="a checkout of an older version")
    parser.add_argument("--judge", type=float, default=90, help="seconds kept for trained_loss.py")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels of all peers")
    parser.add_argument("--work", type=Path, default=Path("bench/out/compare"))
    parser.add_argument("--limit", type=float, default=200, help="seconds a run may take")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for everything")
    run_all(parser.parse_args())
