"""One run of the benchmark job, of lorgnette or of a peer, as a process of its own: its figures, or why it has none."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import process
import road

from lorgnette.report import run_log

HERE = Path(__file__).parent
NO_DROPOUT = "-dropout0"
OURS = "lorgnette"
WARM_UP = 5
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Of compiled kernels: one place for all, as on anybody's machine. Peers share Liger's."""
Run = dict[str, Any]


def kernels(work: Path) -> dict[str, str]:
    return {variable: str(work / "kernels" / folder) for variable, folder in CACHES.items()}


def ours(name: str, job: Path, work: Path, limit: float) -> Run:
    """A run of lorgnette. Making the pictures' features and recording the first pass is training here: peers do that
    work in their steps. Evaluation and saving on the way are not: no peer does them here."""
    shutil.rmtree(work / "cache" / "lorgnette", ignore_errors=True)  # features kept by the run before
    folder = work / name / "run"
    words = ["train.logging_steps=5", *(["lora.dropout=0"] if name.endswith(NO_DROPOUT) else [])]
    environment = os.environ | kernels(work) | {"XDG_CACHE_HOME": str(work / "cache")}
    begun = time.time()
    try:
        run = road.run(job, folder, words, limit, environment)
    except process.FailedError as failed:
        return {"failed": str(failed)}
    records = run_log.read_log(folder / "log.jsonl")
    lines = [r for r in records if r["kind"] == "train"]
    after = [line for line in lines if line["step"] > WARM_UP]
    stages = {"engine": 0.0, **run["stages_s"]}  # only the fast one takes time to set up
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
        "reserved_gib": run["reserved_gib"],
        "losses": [[line["step"], line["loss"]] for line in lines],
    }


def peer(name: str, job: Path, work: Path, site: Path, limit: float) -> Run:
    """A run of a peer, ended once its adapter is on disk; {"failed": its last lines} where it made no figures within
    `limit` seconds. Figures of a run that trained and could not save have no `saved_s`, and say why: "unsaved"."""
    kind, home = name.removesuffix(NO_DROPOUT), work / name
    out = home / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    environment = os.environ | kernels(work) | {
        "HF_HOME": str(home / "hf"), "MODELSCOPE_CACHE": str(home / "modelscope"), "PYTHONPATH": str(site),
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0",
    }  # fmt: skip
    command = [
        sys.executable, str(HERE / "peers" / f"by_{kind}.py"), str(work / "pictures"), str(out),
        f"--model={job / 'model'}", f"--dropout={0 if name.endswith(NO_DROPOUT) else 0.05}", f"--begun={time.time()}",
    ]  # fmt: skip
    written, why = out / "run.json", None
    try:
        process.run(
            command, home / "log.txt", limit, done=lambda: "saved_s" in figures(written), cwd=home,
            environment=environment,
        )  # fmt: skip
    except process.FailedError as failed:
        why = str(failed)
    run = figures(written)
    if "training_s" not in run:
        return {"failed": why or "it ended without figures"}
    if "saved_s" not in run:
        run["unsaved"] = why or "it ended without saving"
    own = {found.name: found.version for found in distributions(path=[str(site)])}
    return run | {"versions": own | run.get("versions", {})}


def figures(path: Path) -> Run:
    """What a peer has written so far, whole at any moment (peers/meter.py); nothing before its last step."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def installed(kind: str, wheels: Path | None, work: Path) -> Path:
    """The folder with a peer's own packages, compiled, outside of what is timed. Raises process.FailedError."""
    folder, whole = work / "sites" / kind, work / "sites" / f"{kind}.whole"
    files = sorted(map(str, (wheels / kind).rglob("*.whl"))) if wheels else []
    if files and not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)
        install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(folder)]
        process.run([sys.executable, *install, *files], work / "sites" / f"{kind}.txt", 120)
        # Not checked: some packages ship templates that are no Python yet.
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "-j", "0", str(folder)], check=False, capture_output=True
        )
        whole.touch()
    return folder
