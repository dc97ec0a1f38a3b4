"""Experiment trackers behind one small interface, none of which can stop a training.

    trackers = open_trackers("auto", project="lorgnette", experiment="coco", folder=run.path, warn=print)
    tracker.start(settings) → log(metrics, step)* → predictions(rows, step)? → finish()

A tracker that fails is named once through `warn` and is silent from then on: the run's own log.jsonl and report.html
hold everything it would have had. Only the first process of a run should open any. Knows nothing about the
libraries: one module each knows its own.
"""

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from lorgnette.errors import UsageError
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.run_log import parse_number

Warn = Callable[[str], None]


class Tracker(Protocol):
    """start once, log often, predictions when there are some, finish once."""

    @property
    def address(self) -> str | None:
        """How to look at the run: an address, or a command to type. None before the start."""

    def start(self, settings: Mapping[str, object]) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None: ...

    def finish(self) -> None: ...


Opener = Callable[[str, str, Path, Warn], Tracker]


def _open_swanlab(project: str, experiment: str, folder: Path, warn: Warn) -> Tracker:
    from lorgnette.report.trackers.swanlab import SwanlabTracker

    return SwanlabTracker(project, experiment, folder, warn)


def _open_tensorboard(_project: str, _experiment: str, folder: Path, _warn: Warn) -> Tracker:
    from lorgnette.report.trackers.tensorboard import TensorboardTracker

    return TensorboardTracker(folder)


def _open_wandb(project: str, experiment: str, folder: Path, warn: Warn) -> Tracker:
    from lorgnette.report.trackers.wandb import WandbTracker

    return WandbTracker(project, experiment, folder, warn)


TRACKERS: dict[str, Opener] = {"swanlab": _open_swanlab, "tensorboard": _open_tensorboard, "wandb": _open_wandb}
"""Name of the tracker, which is also its package's and its pip extra's."""


def open_trackers(
    names: Sequence[str] | Literal["auto"], *, project: str, experiment: str, folder: Path, warn: Warn
) -> list[Tracker]:
    """The trackers of a run, not yet started. "auto": SwanLab where it is installed. ("none",) or (): none."""
    if names == "auto" or list(names) == ["auto"]:
        wanted: Sequence[str] = ["swanlab"] if is_installed("swanlab") else []
    else:
        wanted = _check_names([names] if isinstance(names, str) else list(names))
    return [GuardedTracker(name, TRACKERS[name](project, experiment, folder, warn), warn) for name in wanted]


def is_installed(package: str) -> bool:
    """Whether it could be imported, found out without importing it."""
    return importlib.util.find_spec(package) is not None


def to_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A record of the run's log as trackers name it: train/loss, train/lr, train/grad_norm, …, eval/loss."""
    kind = record.get("kind")
    if kind not in ("train", "eval"):
        return {}
    values = ((name.removeprefix(f"{kind}_"), parse_number(value)) for name, value in record.items() if name != "step")
    return {f"{kind}/{name}": value for name, value in values if value is not None}


def _check_names(names: list[str]) -> list[str]:
    if names == ["none"]:
        return []
    for name in names:
        if name in TRACKERS and is_installed(name):
            continue
        if name in TRACKERS:
            what, remedy = f"tracker {name!r} is not installed", f"pip install 'lorgnette[{name}]'"
        elif name in ("none", "auto"):
            what, remedy = f"{name!r} stands alone, beside no other tracker", "remove it or the others"
        else:
            near = difflib.get_close_matches(name, [*TRACKERS, "auto", "none"], n=1, cutoff=0.4)
            what = f"no tracker is named {name!r}"
            remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(TRACKERS)}, auto, none"
        raise UsageError(what, where="trackers", hint=remedy)
    return list(dict.fromkeys(names))


class GuardedTracker:
    """A tracker whose first failure is told once and switches it off."""

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
        self._try_call("record the predictions", lambda tracker: tracker.log_predictions(rows, step))

    def finish(self) -> None:
        self._try_call("finish", lambda tracker: tracker.finish())

    def _try_call(self, what: str, call: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except UsageError:
            raise  # a wrong setting, found at the start: better now than a training without the tracker asked for
        except Exception as error:
            # Any Exception: it is somebody else's library and network, and hours of training hang on our patience.
            self._tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self._warn(f"{self.name} could not {what} and is off from here: {reason[:300]}; the run's own log goes on")
