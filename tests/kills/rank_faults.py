"""Lets a training of several ranks fail in every way, and prints what the user sees.

    python rank_faults.py FOLDER [NAME …] [--ranks N] [--device cpu] [--resume] [--table]

Every fault is a run of `lorgnette train … gpus=N device=cpu`, or with GPUs on `--device cuda`, whose rank 1 (or 0) is
broken on purpose, or which gets a signal. A fault is described by what the command printed, its exit status, what is on
disk, whether it can be resumed, and the seconds from the fault to the end. No process may be left.

Every run is forked from this process, which has imported everything. Prints a JSON object; --table: a Markdown table.
"""

import argparse
import contextlib
import errno
import faulthandler
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torch.distributed.launcher.api
from transformers import Qwen2VLForConditionalGeneration  # noqa: F401 - what a run imports is imported before the forks

from lorgnette.cli import main
from lorgnette.engine.fast import FastEngine
from lorgnette.errors import LorgnetteError
from lorgnette.training import callbacks, rank_process, run, trainer  # noqa: F401

COLORS = ["red", "green", "blue", "yellow", "black", "white", "magenta", "cyan"]
SETTINGS = {
    "model": "demo", "engine": "fast", "run": "run", "image_size": 28, "lora.rank": 2, "lora.dropout": 0.1,
    "data.holdout": 2, "train.batch_size": 6, "train.max_steps": 8, "train.save_steps": 2, "train.eval_steps": 100,
    "train.learning_rate": 0.001, "predict.max_new_tokens": 1, "report_to": "none", "device": "cpu",
}  # fmt: skip
FAULT_STEP = 4
"""Steps before it are taken; the checkpoint of step 2 or 4 is on disk."""
SLOW_STEP = 0.05
"""Seconds, so that a signal reaches a run that has begun and not ended."""
SECONDS = 60.0


def get_rank() -> int:
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Fault:
    """title: for the table. at_step: breaks a rank in a step; signal: what is sent, and to whom."""

    title: str
    at_step: Callable[[], None] | None = None
    rank: int = 1
    signal: int | None = None
    to: str = "parent"
    patch: Callable[[], None] | None = None


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(1000)


def raise_defect() -> None:
    raise ValueError("row 17: what nobody expected")


def raise_user_error() -> None:
    raise LorgnetteError("cannot decode the image: it is truncated", where="a.jpg", hint="replace it")


def fill_disk() -> None:
    """Rank 0 cannot write a checkpoint any more."""
    if get_rank() == 0:
        vars(callbacks)["save_checkpoint"] = raise_no_space


def raise_no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/checkpoints/step-000006/state.pt")


def run_out_of_memory() -> None:
    """The next backward of this rank does not fit."""
    backward = FastEngine.backward

    def fail_once(self: FastEngine, batch: Any) -> Any:
        FastEngine.backward = backward  # type: ignore[method-assign]
        raise torch.OutOfMemoryError("CUDA out of memory")

    FastEngine.backward = fail_once  # type: ignore[method-assign]


def shorten_limits() -> None:
    rank_process.PERIOD, rank_process.SAID_SECONDS, rank_process.LIMIT_SECONDS = 0.1, 5.0, 12.0


FAULTS = {
    "kill": Fault("`kill -9` of rank 1", kill_self),
    "crash": Fault("rank 1 crashes", crash),
    "defect": Fault("rank 1 raises an unexpected exception", raise_defect),
    "error": Fault("rank 1 cannot go on, such as with a broken image", raise_user_error),
    "error0": Fault("rank 0 cannot go on", raise_user_error, rank=0),
    "disk": Fault("the disk is full", fill_disk, rank=0),
    "memory": Fault("rank 1 is out of memory", run_out_of_memory),
    "hang": Fault("rank 1 hangs", hang, patch=shorten_limits),
    "frozen": Fault("rank 1 stands still", freeze_self, patch=shorten_limits),
    "ctrl-c": Fault("Ctrl-C", signal=signal.SIGINT),
    "term": Fault("TERM, as a scheduler sends it", signal=signal.SIGTERM),
    "hup": Fault("the terminal is closed", signal=signal.SIGHUP),
    "preemption": Fault("TERM to rank 1 alone", signal=signal.SIGTERM, to="rank"),
    "orphans": Fault("`kill -9` of the command", signal=signal.SIGKILL),
}


@dataclass(frozen=True)
class Result:
    """status: as Python gives it, negative for a signal. seconds: from the fault to the end of the command."""

    fault: str
    printed: list[str]
    status: int
    checkpoints: list[str]
    adapter: bool
    resumes: bool | None
    seconds: float
    left: list[int]


def break_steps(fault: Fault) -> None:
    """Slow every step down, and let the fault happen in one of them."""
    if fault.patch:
        fault.patch()
    compute_rate = trainer.Trainer._compute_learning_rate

    def compute(self: Any) -> float:
        time.sleep(SLOW_STEP)
        if self.step == FAULT_STEP:
            Path(f"fault-{get_rank()}").write_text(str(os.getpid()))
            if fault.signal:
                time.sleep(0.5)
            elif fault.at_step and get_rank() == fault.rank:
                fault.at_step()
        return compute_rate(self)

    trainer.Trainer._compute_learning_rate = compute  # type: ignore[method-assign]


def start(folder: Path, words: list[str], fault: Fault | None, output_name: str = "output.txt") -> int:
    """Fork `lorgnette WORDS`. Returns the process id."""
    child = os.fork()
    if child:
        return child
    status: Any = 1
    with contextlib.suppress(BaseException):
        os.setsid()
        output = os.open(folder / output_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", buffering=1) for number in (1, 2))  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        if fault:
            break_steps(fault)
        sys.argv = ["lorgnette", *words]
        try:
            main()
        except SystemExit as exit_:
            status = exit_.code
        except BaseException:
            import traceback

            traceback.print_exc()
    os._exit(int(status or 0))


def find_processes(folder: Path) -> list[int]:
    """All that run in the folder: the command and its ranks, wherever their parent is."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and os.readlink(entry / "cwd") == str(folder.resolve()):
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def try_fault(folder: Path, name: str, ranks: int, *, resume: bool) -> Result:
    fault, words = FAULTS[name], ["train", *(f"{key}={value}" for key, value in SETTINGS.items()), f"gpus={ranks}"]
    folder.mkdir()
    for color in COLORS:
        PIL.Image.new("RGB", (70, 60), color).save(folder / f"{color}.png")
    rows = "".join(f"{color}.png,a {color} field\n" for color in COLORS)
    (folder / "captions.csv").write_text(f"image_path,caption\n{rows}")
    process = start(folder, [*words, "data=captions.csv"], fault)
    status: list[int] = []

    def has_ended() -> bool:
        if not status:
            ended, code = os.waitpid(process, os.WNOHANG)
            if ended:
                status.append(os.waitstatus_to_exitcode(code))
        return bool(status)

    try:
        marks = [folder / f"fault-{rank}" for rank in range(ranks)]
        wait_until(lambda: has_ended() or all(mark.exists() and mark.read_text() for mark in marks))
        begin = time.monotonic()
        if fault.signal is not None and not status:
            os.kill(process if fault.to == "parent" else int(marks[fault.rank].read_text()), fault.signal)
        wait_until(has_ended)
        wait_until(lambda: not find_processes(folder))  # ranks that outlive the command save
        seconds, left = time.monotonic() - begin, find_processes(folder)
    finally:
        for number in (signal.SIGUSR1, signal.SIGKILL):  # the first lets each print what it does
            for left_process in find_processes(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left_process, number)
                    time.sleep(0.2)
        wait_until(has_ended)
    lines = (folder / "output.txt").read_text().splitlines()
    printed = [line for line in lines if not re.match(r"step +\d+ +(eval )?loss", line)]
    run_folder = folder / "run"
    checkpoints = sorted(path.name for path in run_folder.glob("checkpoints/*"))
    is_done, resumes = (run_folder / "adapter").exists(), None
    if resume and not is_done:
        resumed = start(folder, ["train", "--resume", "run"], None, "resumed.txt")
        resumes = os.waitstatus_to_exitcode(os.waitpid(resumed, 0)[1]) == 0
    return Result(fault.title, printed, status[0] if status else 999, checkpoints, is_done, resumes, seconds, left)


def write_table(results: dict[str, Result]) -> str:
    lines = [
        "| what happens | what the command prints last | exit status | on disk | seconds |",
        "|---|---|---|---|---|",
    ]
    for result in results.values():
        printed = [line for line in result.printed if not re.match(r"(data|prompt|steps|model|run|seconds) ", line)]
        disk = "the adapter" if result.adapter else ", ".join(result.checkpoints)
        said = "<br>".join(line.replace("|", "\\|") for line in printed[-3:])
        lines.append(f"| {result.fault} | {said} | {result.status} | {disk} | {result.seconds:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="resume each run with one rank")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    SETTINGS["device"] = arguments.device
    if "bitsandbytes" in sys.modules or torch.cuda.is_initialized():
        sys.exit("bitsandbytes starts CUDA where it is imported, and no run can then fork its ranks")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.names or FAULTS:
        folder = arguments.folder.resolve() / name
        results[name] = try_fault(folder, name, arguments.ranks, resume=arguments.resume)
    if bad := [name for name, result in results.items() if result.left or result.resumes is False]:
        for name in bad:
            for output in ("output.txt", "resumed.txt"):
                if (path := arguments.folder.resolve() / name / output).exists():
                    sys.stderr.write(f"{name}/{output}, its last lines:\n{path.read_text()[-4000:]}\n")
        sys.exit(f"processes are left, or the run cannot be resumed: {', '.join(bad)}")
    for name, result in results.items():  # one message says what ended a run that failed
        if result.status == 1 and sum(line.startswith("lorgnette: ") for line in result.printed) != 1:
            sys.exit(f"{name}: {result.printed}")
    content = {name: asdict(result) for name, result in results.items()}
    sys.stdout.write(f"{write_table(results) if arguments.table else json.dumps(content)}\n")
