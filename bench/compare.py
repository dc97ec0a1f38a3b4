"""Run the benchmark job on lorgnette and on its peers, each run a process of its own, all on this machine, now.

    python bench/compare.py JOB --out results.json --peers transformers,trl,… --repeat 2 --wheels DIR

A peer's packages are installed beside it from DIR/PEER/**.whl; whatever else it needs must be there already. After
every run the results are written anew. The first run of each fills its caches of compiled kernels: where there are
more, it stands apart and the figures are the medians of the others.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import road

from lorgnette import data
from lorgnette.config import Encode
from lorgnette.encode.encoder import Encoder
from lorgnette.report import log
from lorgnette.report.manifest import manifest

HERE = Path(__file__).parent
PEERS = tuple(path.stem.removeprefix("by_") for path in sorted((HERE / "peers").glob("by_*.py")))
NO_DROPOUT = "-dropout0"
OURS = "lorgnette"
HELD_OUT, SIDE, EPOCHS, WARM_UP, RANK = 4, 280, 2, 5, 64
FIGURES = ("prep_s", "training_s", "saved_s", "samples_per_s", "steady_samples_per_s", "tokens_per_s",
           "steady_tokens_per_s", "share", "steady_share", "peak_gib")  # fmt: skip
Run = dict[str, Any]


def ours(name: str, job: Path, work: Path) -> Run:
    """A run of lorgnette. Making the pictures' features and recording the first pass is training here: peers do that
    work in their steps. Evaluation and saving on the way are not: no peer does them here."""
    shutil.rmtree(work / "cache" / "lorgnette", ignore_errors=True)  # features kept by the run before
    folder = work / name / "run"
    words = ["train.log_steps=5", *(["lora.dropout=0"] if name.endswith(NO_DROPOUT) else [])]
    begun = time.time()
    try:
        run = road.run(job, folder, words)
    except subprocess.CalledProcessError as error:
        return {"failed": f"exit status {error.returncode}"}
    records = log.read(folder / "log.jsonl")
    lines = [r for r in records if r["kind"] == "train"]
    after = [line for line in lines if line["step"] > WARM_UP]
    stages = run["stages_s"]
    training = stages["features"] + stages["engine"] + sum(line["seconds"] for line in lines)
    saved = (folder / "adapter").stat().st_ctime - begun  # when it took its name
    beside = stages["features"] + stages["engine"] + stages["steps"] - training
    return {
        "prep_s": saved - training - beside - stages["save"],
        "training_s": training,
        "evaluating_s": beside,
        "saved_s": saved,
        "process_s": run["wall_s"],
        "stages_s": {"start": run["start_s"], **stages},
        "steps": lines[-1]["step"],
        "steady_steps": max(0, lines[-1]["step"] - WARM_UP),
        "steady_s": sum(line["seconds"] for line in after) or None,
        "peak_gib": run["peak_gib"],
        "losses": [[line["step"], line["loss"]] for line in lines],
    }


def peer(name: str, job: Path, work: Path, site: Path, limit: float) -> Run:
    """A run of a peer; {"failed": its last lines} where it ended in an error or took longer than `limit` seconds."""
    kind, home = name.removesuffix(NO_DROPOUT), work / name
    out = home / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    caches = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "HF_HOME": "hf",
              "MODELSCOPE_CACHE": "modelscope"}  # fmt: skip
    environment = os.environ | {variable: str(home / folder) for variable, folder in caches.items()}
    environment |= {
        "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    command = [
        sys.executable, str(HERE / "peers" / f"by_{kind}.py"), str(work / "pictures"), str(out),
        f"--model={job / 'model'}", f"--dropout={0 if name.endswith(NO_DROPOUT) else 0.05}",
    ]  # fmt: skip
    said = home / "log.txt"
    with said.open("w") as file:
        begun = time.time()
        try:
            status = subprocess.run(
                [*command, f"--begun={begun}"],
                check=False, cwd=home, env=environment, stdout=file, stderr=file, timeout=limit,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = f"none after {limit:.0f} s"
        wall = time.time() - begun
    if status != 0:
        last = said.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return {"failed": "\n".join([f"exit status {status}", *last])}
    return json.loads((out / "run.json").read_text()) | {"process_s": wall}


def rated(run: Run, job: dict[str, float], ceiling: float | None) -> Run:
    """The run with its rates, whole and after step 5; share: of the measured matmul ceiling, LLM FLOPs only."""
    if "failed" in run:
        return run
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
    encoder = Encoder.of_folder(job / "model", Encode(size=(SIDE, SIDE)))
    lengths = [len(encoder.encode(example).tokens) for example in data.read(job / "captions.csv")][:-HELD_OUT]
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


def site(kind: str, wheels: Path | None, work: Path) -> Path:
    """The folder with a peer's own packages, installed and compiled outside of what is timed."""
    folder = work / "sites" / kind
    files = sorted(map(str, (wheels / kind).rglob("*.whl"))) if wheels else []
    if files and not folder.exists():
        install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(folder)]
        subprocess.run([sys.executable, *install, *files], check=True)
        # Not checked: some packages ship templates that are no Python yet.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "-j", "0", str(folder)], check=False, capture_output=True
        )
    return folder


def summary(runs: list[Run]) -> dict[str, Run]:
    """By name: medians over its runs (without the first, where there are more), and times lorgnette's training time."""
    table: dict[str, Run] = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        of = [run for run in runs if run["name"] == name]
        good = [run for run in of if "failed" not in run]
        if not good:
            table[name] = {"failed": of[-1]["failed"]}
            continue
        rest = good[1:] or good
        medians = {f: statistics.median(run[f] for run in rest) for f in FIGURES if rest[0].get(f) is not None}
        table[name] = medians | {"runs": len(rest), "first_training_s": good[0]["training_s"]}
    if "training_s" in table.get(OURS, {}):
        for row in table.values():
            if "training_s" in row:
                row["times_ours"] = row["training_s"] / table[OURS]["training_s"]
    return table


def plan(peers: list[str], repeat: int, own: list[str], times: int) -> list[str]:
    """The names of the runs in their order: in rounds, so that a machine that drifts drifts for all."""
    rounds = range(max(repeat, times))
    return [name for n in rounds for name in (own if n < times else []) + (peers if n < repeat else [])]


def race(given: argparse.Namespace) -> None:
    work, job = given.work.resolve(), given.job.resolve()
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    resized(job, work / "pictures")
    told = subprocess.run([sys.executable, str(HERE / "ceiling.py")], capture_output=True, text=True, check=True)
    machine = json.loads(told.stdout)
    print(told.stdout, flush=True)
    size = counted(job)
    sites = {kind: site(kind, given.wheels, work) for kind in {p.removesuffix(NO_DROPOUT) for p in given.peers}}
    runs: list[Run] = []
    versions: dict[str, dict[str, str]] = {}
    made = manifest(seed=0, command=["bench/compare.py", *given.peers], device=machine["gpu"])
    for name in plan(given.peers, given.repeat, given.own, given.times):
        kind = name.removesuffix(NO_DROPOUT)
        run = ours(name, job, work) if kind == OURS else peer(name, job, work, sites[kind], given.limit)
        if "versions" in run:
            versions[kind] = run.pop("versions")
        runs.append({"name": name, **rated(run, size, machine["matmul_tflops"])})
        print(json.dumps({key: value for key, value in runs[-1].items() if key != "losses"}), flush=True)
        results = {"summary": summary(runs), "runs": runs, "job": size, "machine": machine, "versions": versions}
        given.out.write_text(json.dumps(results | {"made_with": made}, indent=2) + "\n", encoding="utf-8")


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
    parser.add_argument("--own", type=names, default=[OURS], help="lorgnette, lorgnette-dropout0, or both")
    parser.add_argument("--times", type=int, default=4, help="runs of lorgnette")
    parser.add_argument("--wheels", type=Path, help="a folder with a folder of wheels for each peer")
    parser.add_argument("--work", type=Path, default=Path("bench/out/compare"))
    parser.add_argument("--limit", type=float, default=200, help="seconds a peer's run may take")
    race(parser.parse_args())
