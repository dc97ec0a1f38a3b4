"""Kills a short training at each of its file-system calls, recovers it, and compares the result.

    python kill_points.py FOLDER [--sample N] [--only TEXT] [--break] [--jobs N]

A point is a call (open for writing, write, fsync, replace, mkdir, unlink, flock, …) in the run folder or the feature
cache, with a moment: before it, in the middle of it (a write), or after it. After a kill there, the same command runs
again, or `train --resume` if the run can be resumed, and adapter, best adapter, checkpoints, answers and log must equal
those of the run that nobody killed.

SIGKILL leaves the disk as it is. So one run gives the state after a kill at each of its points: a copy, made while the
other threads wait. Points with the same state are recovered once. With --sample, the process really kills itself, at
N points spread over all.

Three scenarios: a new run; a resumed run, whose first process was killed in a checkpoint; a finished run that is
resumed, which replaces what it wrote. --only takes the points whose name holds TEXT. --break writes the checkpoints of
a new run without atomicity, so that the comparison must fail.

Every run is forked from this process, which has imported everything. Prints a JSON object.
"""

import argparse
import builtins
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import safetensors.torch
import torch

from lorgnette.cli import main
from lorgnette.report import run_log
from lorgnette.training import checkpoint, run  # noqa: F401 - imported before the forks

COLORS = ["red", "green", "blue", "yellow", "black"]
SETTINGS = [
    "model=demo", "engine=fast", "run=run", "image_size=28", "lora.rank=2", "lora.dropout=0.1", "data.holdout=2",
    "train.batch_size=1", "train.epochs=1", "train.save_steps=1", "train.eval_steps=1", "train.logging_steps=1",
    "train.learning_rate=0.001", "predict.max_new_tokens=1", "report_to=none",
]  # fmt: skip
CLOCK = ("seconds", "tokens_per_s", "data_wait")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


State = tuple[tuple[str, int, str], ...]
Halves = tuple[Callable[[], object], Callable[[], Any]]


class Point(NamedTuple):
    scenario: str
    call: str
    moment: str


class Store:
    """Copies of a folder, in a folder of their own: each content once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[tuple[str, int, int, int], str] = {}
        folder.mkdir(exist_ok=True)

    def save(self, source: str) -> State:
        """(path, mode, content's hash, "" for a folder) of everything in the folder."""
        entries = []
        for folder, folders, files in os.walk(source):
            for name in folders + files:
                path = os.path.join(folder, name)
                content = "" if name in folders else self._save_content(path)
                entries.append((os.path.relpath(path, source), os.stat(path).st_mode & 0o777, content))
        return tuple(sorted(entries))

    def restore(self, state: State, target: Path) -> None:
        target.mkdir()
        for name, mode, content in state:
            if content:
                shutil.copyfile(self._folder / content, target / name)
            else:
                (target / name).mkdir()
            (target / name).chmod(mode)

    def _save_content(self, path: str) -> str:
        status = os.stat(path)
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:  # each change of a run changes a size
            self._known[key] = self._copy_content(path)
        return self._known[key]

    def _copy_content(self, path: str) -> str:
        with io.open(path, "rb") as file:  # noqa: UP020 - before it is wrapped
            content = file.read()
        name = hashlib.sha256(content).hexdigest()
        if not (self._folder / name).exists():
            with io.open(self._folder / name, "wb") as file:  # noqa: UP020
                file.write(content)
        return name


class FileCalls:
    """The file-system calls of this process below a folder. It dies at `kill_at`; without it, the states are kept."""

    def __init__(self, folder: Path, kill_at: Point | None, store: Store) -> None:
        self._folder, self._kill_at, self._store = os.path.realpath(folder), kill_at, store
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._thread_at_point: int | None = None
        self.states: list[tuple[str, str, State]] = []

    def run(self, name: str, path: Any, call: Callable[[], Any], halves: Halves | None = None) -> Any:
        """call(), with a point before and after it; or its halves, with a point between them."""
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if not path.startswith(self._folder + os.sep) or self._thread_at_point == threading.get_ident():
            return call()
        place = re.sub(r"\.\d+\.(?=part|old)", ".PID.", os.path.relpath(path, self._folder))
        with self._lock:
            self._counts[f"{name} {place}"] += 1
            key = f"{name} {place} {self._counts[f'{name} {place}']}"
            self._reach(key, "before")
            try:
                if halves is None:
                    return call()
                halves[0]()
                self._reach(key, "during")
                return halves[1]()
            finally:
                self._reach(key, "after")

    def _reach(self, key: str, moment: str) -> None:
        if self._kill_at is not None:
            if (self._kill_at.call, self._kill_at.moment) == (key, moment):
                os.kill(os.getpid(), signal.SIGKILL)
            return
        self._thread_at_point = threading.get_ident()
        self.states.append((key, moment, self._store.save(self._folder)))
        self._thread_at_point = None

    def install(self) -> None:
        """Put a point around every function through which Python changes files."""
        for name in ("mkdir", "rmdir", "unlink", "remove", "replace", "rename", "chmod", "utime", "truncate"):
            self._wrap(os, name, lambda path, *_, dir_fd=None, **__: find_path(path, dir_fd))
        for name in ("fsync", "ftruncate", "pwrite"):
            self._wrap(os, name, lambda descriptor, *_: find_path(descriptor))
        self._wrap(fcntl, "flock", lambda file, *_: find_path(file if isinstance(file, int) else file.fileno()))
        self._wrap_os_open()
        self._wrap_open()
        self._wrap_safetensors()

    def _wrap_os_open(self) -> None:
        os_open = os.open

        def open_descriptor(path: Any, flags: int, *more: Any, dir_fd: int | None = None) -> int:
            call = partial(os_open, path, flags, *more, dir_fd=dir_fd)
            return self.run("open", find_path(path, dir_fd), call) if flags & WRITING else call()  # type: ignore[no-any-return]

        os.open = open_descriptor  # type: ignore[assignment]

    def _wrap_open(self) -> None:
        """Files for writing are built from the same parts as Python's own, with points in the lowest."""
        plain_open, calls = io.open, self

        class File(io.FileIO):
            def write(self, data: Any) -> Any:
                content, write = memoryview(data).cast("B"), super().write
                middle = len(content) // 2

                def write_rest() -> int:
                    return middle + (write(content[middle:]) or 0)

                halves = (partial(write, content[:middle]), write_rest)
                return calls.run("write", find_path(self.fileno()), partial(write, content), halves)

            def truncate(self, size: Any = None) -> Any:
                return calls.run("truncate", find_path(self.fileno()), partial(super().truncate, size))

        def open_file(
            file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
            newline: str | None = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            # With an opener, the point is around its os.open.
            make = partial(File, file, mode.replace("t", "").replace("b", ""), opener=opener)
            raw = make() if opener else calls.run("open", find_path(file), make)
            binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

        io.open = builtins.open = open_file  # type: ignore[assignment]

    def _wrap_safetensors(self) -> None:
        """It writes without Python."""
        serialize = safetensors.torch.serialize_file

        def serialize_file(tensors: Any, path: Any, **options: Any) -> None:
            write = partial(serialize, tensors, path, **options)

            def write_half() -> None:
                write()
                os.truncate(path, os.path.getsize(path) // 2)

            self.run("serialize", find_path(path), write, (write_half, write))

        safetensors.torch.serialize_file = serialize_file

    def _wrap(self, module: Any, name: str, locate: Callable[..., str]) -> None:
        function = getattr(module, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            return self.run(name, locate(*arguments, **options), lambda: function(*arguments, **options))

        setattr(module, name, wrapped)


def find_path(path: Any, dir_fd: int | None = None) -> str:
    """The path of a file: given as such, relative to an open folder, or as a descriptor."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
    folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.join(folder, os.fspath(path))


class Outcome(NamedTuple):
    """status: as a shell's; negative for a signal. states: of the points, if the process was not to be killed."""

    status: int
    output: str
    states: list[tuple[str, str, State]]


def run_command(
    words: Sequence[str],
    folder: Path,
    kill_at: Point | None = None,
    store: Store | None = None,
    *,
    broken: bool = False,
) -> Outcome:
    """Run `lorgnette WORDS` in a forked process and in `folder`; with a store, its run and cache are watched."""
    output, states = folder / "output.txt", folder / "states.pickle"
    for path in (output, states):
        path.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            status = run_child(words, folder, kill_at, store, broken)
        os._exit(status)
    _, status = os.waitpid(child, 0)
    content = pickle.loads(states.read_bytes()) if states.exists() else []
    return Outcome(os.waitstatus_to_exitcode(status), output.read_text(), content)


def run_child(words: Sequence[str], folder: Path, kill_at: Point | None, store: Store | None, broken: bool) -> int:
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT, 0o666)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", buffering=1) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "watched" / "cache")
    if broken:
        checkpoint.atomic_folder = write_in_place  # type: ignore[assignment]
    calls = None if store is None else FileCalls(folder / "watched", kill_at, store)
    if calls is not None:
        calls.install()
    sys.argv = ["lorgnette", *words]
    status: Any = 0
    try:
        main()
    except SystemExit as exit_:
        status = exit_.code
    if calls is not None:
        (folder / "states.pickle").write_bytes(pickle.dumps(calls.states))
    return int(status or 0)


@contextlib.contextmanager
def write_in_place(path: Path) -> Iterator[Path]:
    """What `atomic_folder` must not be."""
    path.mkdir(parents=True)
    yield path


def describe(run_folder: Path) -> dict[str, Any]:
    """All of a run that does not depend on the clock or on its path."""
    names = ("adapter/*", "best/*", "checkpoints/*/adapter*", "predictions.jsonl")
    files = [path for name in names for path in run_folder.glob(name)]
    records = [record for record in run_log.read_log(run_folder / "log.jsonl") if "step" in record]
    return {
        **{str(path.relative_to(run_folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)},
        "log": [{key: record[key] for key in sorted(record) if key not in CLOCK} for record in records
                if record["kind"] != "event"],
        "files": sorted(path.name for path in run_folder.iterdir()),
        "checkpoints": sorted(path.name for path in (run_folder / "checkpoints").iterdir()),
    }  # fmt: skip


class Harness:
    """broken: checkpoints are written without atomicity."""

    def __init__(self, folder: Path, *, broken: bool) -> None:
        self.folder, self.broken = folder, broken
        for color in COLORS:
            PIL.Image.new("RGB", (70, 60), color).save(folder / f"{color}.png")
        rows = "".join(f"{color}.png,a {color} field\n" for color in COLORS)
        (folder / "captions.csv").write_text(f"image_path,caption\n{rows}")
        settings = [word.replace("run=run", "run=watched/run") for word in SETTINGS]
        self._new = ["train", f"data={folder / 'captions.csv'}", *settings]
        self._store = Store(folder / "store")
        self._bases: dict[str, State] = {"new": ()}
        self._expected: dict[str, Any] = {}
        self._num_folders = 0

    def record(self) -> dict[Point, State]:
        """Run every scenario to its end; the state of the disk at each of its points, in order."""
        states = self._record("new")
        if self.broken:
            return states
        # The first process of the resumed run was killed while it wrote the second checkpoint.
        [*_, second] = [point for point in states if point.moment == "during" and "000002.PID.part/state" in point.call]
        self._bases |= {"resumed": states[second], "finished": states[list(states)[-1]]}
        return states | self._record("resumed") | self._record("finished")

    def check(self, point: Point, state: State | None) -> str:
        """Kill, or take the state after it; recover; compare. Returns what is wrong; "" if nothing."""
        folder = self._make_folder(self._bases[point.scenario] if state is None else state)
        if state is None:
            killed = self._run(folder, point)
            if killed.status != -signal.SIGKILL:
                return f"was not killed: status {killed.status}: {killed.output}"
        recovered = self._run(folder)
        if recovered.status:
            return f"not recovered: status {recovered.status}: {recovered.output}"
        found = describe(folder / "watched" / "run")
        shutil.rmtree(folder)
        different = [name for name in self._expected | found if self._expected.get(name) != found.get(name)]
        return f"different: {', '.join(different)}" if different else ""

    def _record(self, scenario: str) -> dict[Point, State]:
        folder = self._make_folder(self._bases[scenario])
        outcome = self._run(folder, store=self._store)
        assert outcome.status == 0, (scenario, outcome.output)
        found = describe(folder / "watched" / "run")
        assert self._expected in ({}, found), scenario
        self._expected = found
        return {Point(scenario, call, moment): state for call, moment, state in outcome.states}

    def _run(self, folder: Path, kill_at: Point | None = None, store: Store | None = None) -> Outcome:
        """What a user does: resume the run if it can be resumed, else the same command."""
        can_resume = (folder / "watched" / "run" / "config.yaml").exists()
        words = ["train", "--resume", "watched/run"] if can_resume else self._new
        store = self._store if kill_at is not None else store
        return run_command(words, folder, kill_at, store, broken=self.broken)

    def _make_folder(self, state: State) -> Path:
        self._num_folders += 1
        folder = self.folder / str(self._num_folders)
        folder.mkdir()
        self._store.restore(state, folder / "watched")
        return folder


def select_spread(points: list[Point], count: int) -> list[Point]:
    return [points[(2 * i + 1) * len(points) // (2 * count)] for i in range(min(count, len(points)))]


def check_all(harness: Harness, work: dict[Point, State | None], jobs: int) -> dict[Point, str]:
    done: list[Point] = []

    def check(point: Point) -> str:
        fault = harness.check(point, work[point])
        done.append(point)
        if fault or len(done) % 50 == 0:
            sys.stderr.write(f"{len(done)} of {len(work)} {fault and (*point, fault)}\n")
            sys.stderr.flush()
        return fault

    if jobs == 1:
        return {point: check(point) for point in work}
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip(work, pool.map(check, work), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--break", dest="broken", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    arguments.folder.mkdir(parents=True, exist_ok=True)
    harness = Harness(arguments.folder.resolve(), broken=arguments.broken)
    all_states = harness.record()
    selected = {point: state for point, state in all_states.items() if arguments.only in " ".join(point)}
    if arguments.sample is None:
        first_points = {state: point for point, state in reversed(selected.items())}
        work: dict[Point, State | None] = {
            point: state for point, state in selected.items() if first_points[state] == point
        }
    else:
        work = dict.fromkeys(select_spread(list(selected), arguments.sample))
    faults = {" ".join(point): fault for point, fault in check_all(harness, work, arguments.jobs).items() if fault}
    counts = Counter(point.scenario for point in all_states)
    result = {"points": counts, "selected": len(selected), "checked": len(work), "faults": faults}
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    sys.exit(bool(faults))
