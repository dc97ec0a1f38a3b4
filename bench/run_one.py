"""One run of the benchmark job, of lorgnette or of a peer, in a process of its own: its figures, or why it has none.

A run's adapter lies in `find_adapter(name, work)` until the next run of that name.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import process
import training_run
from summary import BASELINE, OURS, Run

from lorgnette.report import run_log

HERE = Path(__file__).parent
NO_DROPOUT = "-dropout0"
NUM_WARMUP_STEPS = 5
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Caches of compiled kernels, shared by all runs as on any machine. Peers share Liger's kernels. An older version of
lorgnette has its own."""
OLDER_BENCH = {"run_one": "run_ours", "timed": "ours"}
"""The module and the function of an older version's bench that do what `run_ours` does here."""
RUN_OLDER = """import json, sys
from importlib import import_module
from pathlib import Path
module, function, job, work, limit = sys.argv[1:]
run = getattr(import_module(module), function)("lorgnette", Path(job), Path(work), float(limit))
(Path(work) / "run.json").write_text(json.dumps(run), encoding="utf-8")
"""


def set_kernel_caches(work: Path) -> dict[str, str]:
    return {variable: str(work / "kernels" / folder) for variable, folder in CACHES.items()}


def find_adapter(name: str, work: Path) -> Path:
    return (work / BASELINE / OURS if name == BASELINE else work / name) / "run" / "adapter"


def run_baseline(checkout: Path, job: Path, work: Path, limit: float) -> Run:
    """Run the older version of lorgnette in `checkout` by its own bench, whose figures are those of `run_ours`."""
    own = work / BASELINE
    (out := own / "run.json").unlink(missing_ok=True)
    own.mkdir(parents=True, exist_ok=True)
    module = next((name for name in OLDER_BENCH if (checkout / "bench" / f"{name}.py").is_file()), None)
    if module is None:
        return {"failed": f"{checkout} has no bench/run_one.py"}
    command = [sys.executable, "-c", RUN_OLDER, module, OLDER_BENCH[module], str(job), str(own), str(limit)]
    folders = [str(checkout / "src"), str(checkout / "bench"), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    try:
        process.run(command, own / "log.txt", limit + 20, environment=environment)
    except process.FailedError as error:
        return {"failed": str(error)}
    return read_figures(out)


def run_ours(name: str, job: Path, work: Path, limit: float) -> Run:
    """Run lorgnette. Computing the image features and capturing the first graph count as training here, since peers do
    that work in their steps. Evaluation and saving between steps do not: no peer does them here."""
    shutil.rmtree(work / "cache" / "lorgnette" / "features", ignore_errors=True)  # of the run before
    folder = work / name / "run"
    overrides = ["train.logging_steps=5", *(["lora.dropout=0"] if name.endswith(NO_DROPOUT) else [])]
    environment = os.environ | set_kernel_caches(work) | {"XDG_CACHE_HOME": str(work / "cache")}
    start = time.time()
    try:
        run = training_run.run(job, folder, overrides, limit, environment)
    except process.FailedError as error:
        return {"failed": str(error)}
    records = run_log.read_log(folder / "log.jsonl")
    lines = [r for r in records if r["kind"] == "train"]
    steady = [line for line in lines if line["step"] > NUM_WARMUP_STEPS]
    stages = {"engine": 0.0, **run["stages_s"]}  # only the fast engine has this stage
    training = stages["features"] + stages["engine"] + sum(line["seconds"] for line in lines)
    saved = (folder / "adapter").stat().st_ctime - start  # when the folder got its name
    evaluating = stages["features"] + stages["engine"] + stages["steps"] - training
    return {
        "prep_s": saved - training - evaluating - stages["save"],
        "training_s": training,
        "evaluating_s": evaluating,
        "saved_s": saved,
        "process_s": run["wall_s"],
        "stages_s": stages,
        "timeline": run["timeline"],
        "steps": lines[-1]["step"],
        "steady_steps": max(0, lines[-1]["step"] - NUM_WARMUP_STEPS),
        "steady_s": sum(line["seconds"] for line in steady) or None,
        "peak_gib": run["peak_gib"],
        "reserved_gib": run["reserved_gib"],
        "losses": [[line["step"], line["loss"]] for line in lines],
    }


def run_peer(name: str, job: Path, work: Path, site: Path, limit: float) -> Run:
    """Run a peer and end it once its adapter is on disk. It starts from lorgnette's first adapter and takes the samples
    in lorgnette's order: both are in WORK/start (start.py).

    Returns {"failed": its last lines} if it has no figures within `limit` seconds. If it trained but did not save, the
    figures have no `saved_s` but a reason, "unsaved".
    """
    kind, home = name.removesuffix(NO_DROPOUT), work / name
    out = home / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    python_path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = os.environ | set_kernel_caches(work) | {
        "HF_HOME": str(home / "hf"), "MODELSCOPE_CACHE": str(home / "modelscope"), "PYTHONPATH": python_path,
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    command = [
        sys.executable, str(HERE / "peers" / f"by_{kind}.py"), str(work / "images"), str(out),
        f"--model={job / 'model'}", f"--dropout={0 if name.endswith(NO_DROPOUT) else 0.05}",
        f"--start={work / 'start'}", f"--started-at={time.time()}",
    ]  # fmt: skip
    figures_file, reason = out / "run.json", None
    try:
        process.run(
            command, home / "log.txt", limit, is_done=lambda: "saved_s" in read_figures(figures_file), cwd=home,
            environment=environment,
        )  # fmt: skip
    except process.FailedError as error:
        reason = str(error)
    run = read_figures(figures_file)
    if "training_s" not in run:
        return {"failed": reason or "it ended without figures"}
    if "saved_s" not in run:
        run["unsaved"] = reason or "it ended without saving"
    own_versions = {package.name: package.version for package in distributions(path=[str(site)])}
    return run | {"versions": own_versions | run.get("versions", {})}


def read_figures(path: Path) -> Run:
    """The figures that a peer has written so far (peers/meter.py writes atomically); empty before its last step."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def install_peer(kind: str, wheels: Path | None, work: Path) -> Path:
    """Install and compile the packages of peers/packages/KIND.txt from `wheels`, outside of the timed runs. Returns
    their folder, empty without `wheels`.

    Raises process.FailedError.
    """
    folder, complete = work / "sites" / kind, work / "sites" / f"{kind}.complete"
    if wheels and not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        packages = ["--find-links", str(wheels.resolve()), "-r", str(HERE / "peers" / "packages" / f"{kind}.txt")]
        install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(folder)]
        process.run([sys.executable, *install, *packages], work / "sites" / f"{kind}.txt", 120)
        # Not checked: some packages ship templates that are not valid Python.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "-j", "0", str(folder)], check=False, capture_output=True
        )
        complete.touch()
    return folder
