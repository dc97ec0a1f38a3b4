from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lorgnette.errors import UsageError
from lorgnette.report.trackers import tracker
from lorgnette.report.trackers.tracker import GuardedTracker, open_trackers, to_scalars
from lorgnette.types import PredictionRow


class Recorder:
    """A tracker that records its calls and fails at one of them."""

    def __init__(self, fails_in: str = "", error: Exception | None = None) -> None:
        self.fails_in, self.error = fails_in, error or RuntimeError("the network\n is down")
        self.calls: list[str] = []

    @property
    def address(self) -> str | None:
        return "nowhere"

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_in:
            raise self.error

    def start(self, settings: Mapping[str, object]) -> None:
        self._call("start")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._call("log")

    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None:
        self._call("log_predictions")

    def finish(self) -> None:
        self._call("finish")


def run(tracker: GuardedTracker) -> None:
    tracker.start({})
    tracker.log({"train/loss": 1.0}, 1)
    tracker.log({"train/loss": 1.0}, 2)
    tracker.log_predictions([], 2)
    tracker.finish()


@pytest.mark.parametrize("fails_in", ["start", "log", "log_predictions", "finish"])
def test_a_failing_tracker_is_reported_once_and_switched_off(fails_in: str) -> None:
    warnings: list[str] = []
    recorder = Recorder(fails_in)
    guarded = GuardedTracker("swanlab", recorder, warnings.append)
    run(guarded)
    assert recorder.calls[-1] == fails_in
    assert recorder.calls.count(fails_in) == 1
    assert len(warnings) == 1
    assert "swanlab" in warnings[0]
    assert "the network is down" in warnings[0]
    assert guarded.address is None


def test_a_working_tracker_gets_everything() -> None:
    warnings: list[str] = []
    recorder = Recorder()
    guarded = GuardedTracker("x", recorder, warnings.append)
    assert guarded.address == "nowhere"
    run(guarded)
    assert recorder.calls == ["start", "log", "log", "log_predictions", "finish"]
    assert warnings == []


def test_a_wrong_setting_and_an_interrupt_are_not_swallowed() -> None:
    with pytest.raises(UsageError):
        GuardedTracker("x", Recorder("start", UsageError("wrong")), print).start({})

    class Interrupted(Recorder):
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedTracker("x", Interrupted(), print).log({}, 1)


def open_names(names: Sequence[str], folder: Path) -> list[str]:
    trackers = open_trackers(names, "p", folder, print)
    return [tracker.name for tracker in trackers if isinstance(tracker, GuardedTracker)]


def test_names_select_the_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "is_installed", lambda name: True)
    assert open_names(("auto",), tmp_path) == ["swanlab"]
    assert open_names(("none",), tmp_path) == open_names((), tmp_path) == []
    assert open_names(("wandb", "tensorboard", "wandb"), tmp_path) == ["wandb", "tensorboard"]
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "is_installed", lambda name: False)
    assert open_names(("auto",), tmp_path) == []
    with pytest.raises(UsageError, match="pip install swanlab"):
        open_names(("swanlab",), tmp_path)


@pytest.mark.parametrize("names", [("none", "wandb"), ("wandb", "auto")])
def test_none_and_auto_stand_alone(tmp_path: Path, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "is_installed", lambda name: True)
    with pytest.raises(UsageError, match="cannot be combined"):
        open_names(names, tmp_path)


def test_log_records_become_named_scalars() -> None:
    train = {
        "kind": "train",
        "step": 3,
        "epoch": 0.5,
        "loss": "nan",
        "learning_rate": 1e-4,
        "grad_norm": 2,
        "note": "x",
    }
    scalars = to_scalars(train)
    assert set(scalars) == {"train/epoch", "train/loss", "train/learning_rate", "train/grad_norm"}
    assert to_scalars({"kind": "eval", "step": 3, "eval_loss": 0.5}) == {"eval/loss": 0.5}
    assert to_scalars({"kind": "event", "step": 3, "text": "x"}) == {}
