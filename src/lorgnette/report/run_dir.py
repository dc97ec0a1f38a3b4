"""The run folder and its files.

    runs/coco/
      data/              the rows that were in memory, if there were
      manifest.json      versions, machine, seed, hashes, command
      config.yaml        the resolved settings
      adapter/           the adapter in PEFT's format
      best/              the adapter of the best step, if that is not the last
      checkpoints/       to resume from
      log.jsonl          losses, evaluations, events
      predictions.jsonl  answers to the held-out examples before and after training
      report.html        the report
      ranks/             what the processes but the first printed, if several trained
      journal.jsonl      of `teach`: suggestions and answers, one after the other
      captions.csv       of `teach`: the answers
      suggestions.csv    of `teach`: the model's answers to the images that nobody answered
      rounds/            of `teach`: what each training was
      .lock              the process that trains, while it does

config.yaml is written last of what a run needs to be resumed: a folder without it is free. Knows nothing about the
content of the files, and writes none of them.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import open_no_follow, remove_leftovers
from lorgnette.io.folder_kind import JOURNAL, explain_folder, format_resume_command, is_taught

DATA_FOLDER = "data"
"""In a run's folder: the rows that were in memory."""
_STUB = re.compile(r"\.lock|manifest\.json|\.(?:manifest\.json|config\.yaml|data(?:-\d+)?)\.\d+\.part")
"""Names in the folder of a run that was killed before it could be resumed."""
_OWN = re.compile(
    r"data(?:-\d+)?|manifest\.json|config\.yaml|adapter|best|log\.jsonl|predictions\.jsonl|report\.html|step-\d+"
    r"|captions\.csv|suggestions\.csv|images|\d+\.json"
)
"""Names that a run writes atomically, in its folder or in checkpoints/."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held_locks: set[int] = set()


class _Child:
    """A path inside the run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run_dir: "RunDir", owner: type) -> Path:
        return run_dir.path / self._name


@dataclass(frozen=True, slots=True)
class RunDir:
    """lock_descriptor: the open file .lock, while this process holds the lock. gpus: how many train in it."""

    path: Path
    lock_descriptor: int | None = field(default=None, compare=False, repr=False)
    gpus: int = field(default=1, compare=False, repr=False)

    config = _Child("config.yaml")
    manifest = _Child("manifest.json")
    adapter = _Child("adapter")
    best = _Child("best")
    checkpoints = _Child("checkpoints")
    log = _Child("log.jsonl")
    predictions = _Child("predictions.jsonl")
    report = _Child("report.html")
    ranks = _Child("ranks")
    journal = _Child(JOURNAL)
    captions = _Child("captions.csv")
    suggestions = _Child("suggestions.csv")
    rounds = _Child("rounds")
    lock_file = _Child(".lock")

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """Create the folder of a new run; an existing free folder is used."""
        cls.check_is_free(path)
        return cls.create_folder(path)

    @classmethod
    def create_folder(cls, path: Path) -> "RunDir":
        """The folder, which may be there already. Raises LorgnetteError if it cannot be created."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"run folder cannot be created: {error.strerror or error}"
            raise LorgnetteError(message, where=str(path), hint="choose another name") from error
        return cls(path)

    @staticmethod
    def check_is_free(path: Path) -> None:
        """Raises UsageError if the folder has content other than the first files of a killed run."""
        if path.is_dir() and not is_free(path):
            run_dir = RunDir(path)
            resume = f", or resume that run: {run_dir.resume_command}" if run_dir.config.is_file() else ""
            hint = f"choose another name{resume}"
            raise UsageError("run folder exists and is not empty", where=str(path), hint=hint)

    @classmethod
    def open_existing(cls, path: Path) -> "RunDir":
        """Open the folder of a started run. Raises LorgnetteError if it is none."""
        run_dir = cls(path)
        if not run_dir.config.is_file():
            if run_dir.manifest.is_file() and is_free(path):
                message, hint = "this run was stopped before its first step", "start it again as before"
                raise UsageError(message, where=str(path), hint=hint)
            raise explain_folder(path, "run", lacks="config.yaml")
        return run_dir

    @classmethod
    def find_of_adapter(cls, adapter: Path) -> "RunDir | None":
        """The run of an adapter: of its `adapter`, its `best`, or one of its checkpoints."""
        run = cls(adapter.parent.parent if adapter.parent.name == "checkpoints" else adapter.parent)
        return run if run.config.is_file() else None

    @property
    def is_taught(self) -> bool:
        """Whether the run is one of `teach`."""
        return is_taught(self.path)

    @property
    def resume_command(self) -> str:
        return f"{format_resume_command(self.path)}{f' gpus={self.gpus}' if self.gpus > 1 else ''}"

    @contextmanager
    def lock(self, warn: Callable[[str], None]) -> Iterator["RunDir"]:
        """Keep other processes out until the block, or this process, ends. Yields the locked run folder.

        Leftovers of killed processes are removed. Raises UsageError that names the process which holds the lock.
        """
        try:
            descriptor = _acquire_lock(self.lock_file, warn)
        except OSError as error:
            message = f"run folder cannot be written: {error.strerror or error}"
            raise LorgnetteError(message, where=str(self.path), hint="check its permissions and the disk") from error
        try:
            for folder in (self.path, self.checkpoints, self.rounds):
                remove_leftovers(folder, _OWN)
            yield replace(self, lock_descriptor=descriptor)
        finally:
            _release_lock(descriptor, self.lock_file)

    @contextmanager
    def share_lock(self) -> Iterator["RunDir"]:
        """The locked run folder for processes that are forked in this block: each keeps the lock until it ends."""
        if self.lock_descriptor is None:
            yield self
            return
        descriptor = os.dup(self.lock_descriptor)
        try:
            yield replace(self, lock_descriptor=descriptor)
        finally:
            os.close(descriptor)

    @property
    def is_in_place(self) -> bool:
        """Whether the locked folder is still at its path."""
        return self.lock_descriptor is None or _is_file_at(self.lock_descriptor, self.lock_file)

    def check_in_place(self) -> None:
        """Raises LorgnetteError if the locked folder is no longer at its path: a write would create another one."""
        if not self.is_in_place:
            message = "the run folder, or the .lock in it, was deleted or renamed while it was in use"
            hint = "start a new run, or go on where it is now: train --resume FOLDER, or teach --run FOLDER"
            raise LorgnetteError(message, where=str(self.path), hint=hint)


def find_free_path(parent: Path, name: str, suffix: str = "") -> Path:
    """The first free path of parent/name, parent/name-2, … with the suffix added. An empty folder is free."""
    path, count = parent / f"{name}{suffix}", 1
    while not is_free(path):
        count += 1
        path = parent / f"{name}-{count}{suffix}"
    return path


def is_free(path: Path) -> bool:
    """True for nothing, an empty folder, and the first files of a run that was killed before it could be resumed."""
    if path.is_dir():
        return all(_STUB.fullmatch(child.name) or is_written_rows(child) for child in path.iterdir())
    return not os.path.lexists(path)


def is_written_rows(path: Path) -> bool:
    """Whether it is what `train` writes of rows that are in memory."""
    is_named = path.name == DATA_FOLDER or path.name.startswith(f"{DATA_FOLDER}-")
    return is_named and path.is_dir() and {child.name for child in path.iterdir()} <= {"data.jsonl", "images"}


def _acquire_lock(path: Path, warn: Callable[[str], None]) -> int:
    """Lock the file, which the system unlocks when this process ends, and write this process's number into it."""
    import fcntl  # not on Windows

    while True:
        descriptor = open_no_follow(str(path), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "?"
            os.close(descriptor)
            message, hint = (
                f"process {holder} is training in this run folder",
                "wait for it, stop it, or use another name",
            )
            raise UsageError(message, where=str(path.parent), hint=hint) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            warn(f"{path.parent} is on a file system without locks: let only one process train in it")
        if _is_file_at(descriptor, path):
            break
        os.close(descriptor)  # its holder has just removed it
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        os.close(descriptor)
        raise
    _held_locks.add(descriptor)
    return descriptor


def _release_lock(descriptor: int, path: Path) -> None:
    if descriptor in _held_locks:  # not in a forked child
        _held_locks.remove(descriptor)
        if _is_file_at(descriptor, path):
            path.unlink()
        os.close(descriptor)


def _close_inherited_locks() -> None:
    """In a forked child, which would keep the lock after its parent's end."""
    while _held_locks:
        os.close(_held_locks.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_inherited_locks)


def _is_file_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        return False
