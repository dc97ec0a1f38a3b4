"""The run folder: where each thing of a run lies, and what it was made with.

    runs/coco/
      config.yaml        the resolved settings
      manifest.json      versions, machine, seed, hashes, command
      adapter/           PEFT's own form
      best/              the adapter of the lowest eval loss, where that is not the last
      checkpoints/       what a resume starts from
      log.jsonl          every step
      predictions.jsonl  before and after on the held-out examples
      report.html        all of it to look at

Knows nothing about what the files hold, and makes none of them.
"""

from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError, UsageError


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def create(cls, path: Path) -> "RunDir":
        """A folder for a new run; an empty one that stands there is taken."""
        cls.check_is_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LorgnetteError(
                f"run folder cannot be made: {error.strerror or error}", where=str(path), hint="choose another name"
            ) from error
        return cls(path)

    @staticmethod
    def check_is_free(path: Path) -> None:
        """Raises UsageError where something stands already; makes nothing."""
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(
                "run folder exists and is not empty",
                where=str(path),
                hint=f"choose another name, or go on with that run: lorgnette train --resume {path}",
            )

    @classmethod
    def open_existing(cls, path: Path) -> "RunDir":
        """The folder of a run that was started: it has a config.yaml."""
        folder = cls(path)
        if not path.is_dir():
            raise UsageError("no such run folder", where=str(path), hint="give the folder of a run, such as runs/coco")
        if not folder.config.is_file():
            raise UsageError(
                "not a run folder: it has no config.yaml",
                where=str(path),
                hint="give the folder that `lorgnette train` made, such as runs/coco",
            )
        return folder


def find_free_path(parent: Path, name: str, suffix: str = "") -> Path:
    """parent/name, or the first of parent/name-2, parent/name-3, … that is not taken (an empty folder is free). The
    suffix stands behind the number."""
    path, count = parent / f"{name}{suffix}", 1
    while path.is_file() or (path.is_dir() and any(path.iterdir())):
        count += 1
        path = parent / f"{name}-{count}{suffix}"
    return path
