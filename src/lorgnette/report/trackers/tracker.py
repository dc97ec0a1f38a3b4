"""Experiment trackers behind one interface; none can stop a training.

    trackers = open_trackers(["auto"], "lorgnette", run_dir.path, print)
    tracker.start(settings) → log(metrics, step)* → log_predictions(rows, step)* → finish()

A tracker that fails is reported once through `warn` and switched off: log.jsonl and report.html hold the same data.
Only the main process of a run opens trackers. Knows nothing about the libraries: each has its own module.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lorgnette.errors import UsageError
from lorgnette.report.run_log import parse_number
from lorgnette.types import PredictionRow

Warn = Callable[[str], None]


class Tracker(Protocol):
    """Call start once, log and log_predictions any number of times, finish once."""

    @property
    def address(self) -> str | None:
        """A URL, or a command that shows the run. None before the start."""

    def start(self, settings: Mapping[str, object]) -> None: ...
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None: ...
    def finish(self) -> None: ...


TRACKERS = {"swanlab": "SwanlabTracker", "tensorboard": "TensorboardTracker", "wandb": "WandbTracker"}
"""Class by name. The tracker's module here, its package and its pip extra have the same name."""


def select_trackers(names: Sequence[str]) -> list[str]:
    """The trackers of a run: ("auto",) is SwanLab if it is installed; ("none",) or () is none.

    Raises UsageError for a tracker that is not installed.
    """
    if len(names) == 1 and names[0] in ("none", "auto"):
        return ["swanlab"] if names[0] == "auto" and is_installed("swanlab") else []
    for name in names:
        if name not in TRACKERS:  # the settings allow no other name than none and auto
            message, hint = f"{name!r} cannot be combined with other trackers", f"remove {name!r} or the others"
            raise UsageError(message, where="report_to", hint=hint)
        if not is_installed(name):
            raise UsageError(f"tracker {name!r} is not installed", where="report_to", hint=f"pip install {name}")
    return list(dict.fromkeys(names))


def open_trackers(names: Sequence[str], project: str, folder: Path, warn: Warn) -> list[Tracker]:
    """Create the trackers of a run without starting them.

    ("auto",) uploads nothing. The experiment has the folder's name. Raises what `select_trackers` raises.
    """
    options: dict[str, bool] = {"may_upload": False} if list(names) == ["auto"] else {}
    trackers: list[Tracker] = []
    for name in select_trackers(names):
        module = importlib.import_module(f"lorgnette.report.trackers.{name}")
        tracker: Tracker = getattr(module, TRACKERS[name])(project, folder.resolve().name, folder, warn, **options)
        trackers.append(GuardedTracker(name, tracker, warn))
    return trackers


def is_installed(package: str) -> bool:
    """Whether the package can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def to_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log record under their tracker names: train/loss, train/learning_rate, …, eval/loss."""
    kind = record.get("kind")
    if kind not in ("train", "eval"):
        return {}
    values = ((name.removeprefix(f"{kind}_"), parse_number(value)) for name, value in record.items() if name != "step")
    return {f"{kind}/{name}": value for name, value in values if value is not None}


class GuardedTracker:
    """Switches its tracker off at the first failure and reports it once."""

    def __init__(self, name: str, tracker: Tracker, warn: Warn) -> None:
        self.name = name
        self._tracker: Tracker | None = tracker
        self._warn = warn

    @property
    def address(self) -> str | None:
        return self._tracker.address if self._tracker else None

    def start(self, settings: Mapping[str, object]) -> None:
        self._try_call("start", lambda tracker: tracker.start(settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._try_call("log", lambda tracker: tracker.log(metrics, step))

    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None:
        self._try_call("log the predictions", lambda tracker: tracker.log_predictions(rows, step))

    def finish(self) -> None:
        self._try_call("finish", lambda tracker: tracker.finish())

    def _try_call(self, action: str, call: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except UsageError:
            raise  # a wrong setting: better an error at the start than a training without the tracker
        except Exception as error:
            # Any Exception: neither the library nor its network is ours, and hours of training must not depend on them.
            self._tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{self.name} could not {action} and is switched off: {reason[:300]}; log.jsonl continues")
