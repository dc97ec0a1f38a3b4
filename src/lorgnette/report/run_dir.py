"""The run folder and its files.

    runs/coco/
      config.yaml        the resolved settings
      manifest.json      versions, machine, seed, hashes, command
      adapter/           the adapter in PEFT's format
      best/              the adapter of the best step, if that is not the last
      checkpoints/       to resume from
      log.jsonl          losses, evaluations, events
      predictions.jsonl  answers to the held-out examples before and after training
      report.html        the report

Knows nothing about the content of the files, and writes none of them.
"""

from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError, UsageError


class _Child:
    """A path inside the run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run_dir: "RunDir", owner: type) -> Path:
        return run_dir.path / self._name


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    config = _Child("config.yaml")
    manifest = _Child("manifest.json")
    adapter = _Child("adapter")
    best = _Child("best")
    checkpoints = _Child("checkpoints")
    log = _Child("log.jsonl")
    predictions = _Child("predictions.jsonl")
    report = _Child("report.html")

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """Create the folder of a new run; an existing empty folder is used."""
        cls.check_is_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"run folder cannot be created: {error.strerror or error}"
            raise LorgnetteError(message, where=str(path), hint="choose another name") from error
        return cls(path)

    @staticmethod
    def check_is_free(path: Path) -> None:
        """Raises UsageError if the folder has content."""
        if path.is_dir() and any(path.iterdir()):
            hint = f"choose another name, or resume that run: lorgnette train --resume {path}"
            raise UsageError("run folder exists and is not empty", where=str(path), hint=hint)

    @classmethod
    def open_existing(cls, path: Path) -> "RunDir":
        """Open the folder of a started run. Raises UsageError if it has no config.yaml."""
        run_dir = cls(path)
        hint = "give a folder written by `lorgnette train`, such as runs/coco"
        if not path.is_dir():
            raise UsageError("no such run folder", where=str(path), hint=hint)
        if not run_dir.config.is_file():
            raise UsageError("not a run folder: it has no config.yaml", where=str(path), hint=hint)
        return run_dir


def find_free_path(parent: Path, name: str, suffix: str = "") -> Path:
    """The first free path of parent/name, parent/name-2, … with the suffix added. An empty folder is free."""
    path, count = parent / f"{name}{suffix}", 1
    while path.is_file() or (path.is_dir() and any(path.iterdir())):
        count += 1
        path = parent / f"{name}-{count}{suffix}"
    return path
