from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lorgnette.errors import UsageError
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.trackers import tracker
from lorgnette.report.trackers.tracker import GuardedTracker, open_trackers, to_scalars


class Recorder:
    """A tracker that keeps what it is given, and breaks where told to."""

    def __init__(self, breaks: str = "", error: Exception | None = None) -> None:
        self.breaks, self.error = breaks, error or RuntimeError("the network\n is away")
        self.calls: list[str] = []

    @property
    def address(self) -> str | None:
        return "nowhere"

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.breaks:
            raise self.error

    def start(self, settings: Mapping[str, object]) -> None:
        self._call("start")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._call("log")

    def predictions(self, rows: Sequence[PredictionRow], step: int) -> None:
        self._call("predictions")

    def finish(self) -> None:
        self._call("finish")


def run(tracker: GuardedTracker) -> None:
    tracker.start({})
    tracker.log({"train/loss": 1.0}, 1)
    tracker.log({"train/loss": 1.0}, 2)
    tracker.log_predictions([], 2)
    tracker.finish()


@pytest.mark.parametrize("breaks", ["start", "log", "predictions", "finish"])
def test_a_failing_tracker_is_told_once_and_off(breaks: str) -> None:
    said: list[str] = []
    recorder = Recorder(breaks)
    guarded = GuardedTracker("swanlab", recorder, said.append)
    run(guarded)
    assert recorder.calls[-1] == breaks
    assert recorder.calls.count(breaks) == 1
    assert len(said) == 1
    assert "swanlab" in said[0]
    assert "the network is away" in said[0]
    assert guarded.address is None


def test_a_working_tracker_gets_everything() -> None:
    said: list[str] = []
    recorder = Recorder()
    guarded = GuardedTracker("x", recorder, said.append)
    assert guarded.address == "nowhere"
    run(guarded)
    assert recorder.calls == ["start", "log", "log", "predictions", "finish"]
    assert said == []


def test_a_wrong_setting_and_an_interrupt_are_not_swallowed() -> None:
    with pytest.raises(UsageError):
        GuardedTracker("x", Recorder("start", UsageError("wrong")), print).start({})

    class Interrupted(Recorder):
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedTracker("x", Interrupted(), print).log({}, 1)


def opened(names: object, folder: Path) -> list[str]:
    found = open_trackers(names, project="p", experiment="e", folder=folder, warn=print)  # type: ignore[arg-type]
    return [tracker.name for tracker in found if isinstance(tracker, GuardedTracker)]


def test_which_trackers_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "is_installed", lambda name: True)
    assert opened("auto", tmp_path) == ["swanlab"]
    assert opened(("auto",), tmp_path) == ["swanlab"]
    assert opened(("none",), tmp_path) == opened((), tmp_path) == []
    assert opened(("wandb", "tensorboard", "wandb"), tmp_path) == ["wandb", "tensorboard"]
    assert opened("tensorboard", tmp_path) == ["tensorboard"]
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "is_installed", lambda name: False)
    assert opened("auto", tmp_path) == []
    with pytest.raises(UsageError, match=r"pip install 'lorgnette\[swanlab\]'"):
        opened(("swanlab",), tmp_path)


@pytest.mark.parametrize(
    ("names", "told"),
    [(("swanlb",), "did you mean 'swanlab'"), (("zzz",), "choose from"), (("none", "wandb"), "stands alone")],
)
def test_a_name_that_is_none(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        opened(names, tmp_path)


def test_records_get_the_names_that_charts_have() -> None:
    train = {"kind": "train", "step": 3, "epoch": 0.5, "loss": "nan", "lr": 1e-4, "grad_norm": 2, "note": "x"}
    named = to_scalars(train)
    assert set(named) == {"train/epoch", "train/loss", "train/lr", "train/grad_norm"}
    assert to_scalars({"kind": "eval", "step": 3, "eval_loss": 0.5}) == {"eval/loss": 0.5}
    assert to_scalars({"kind": "event", "step": 3, "text": "x"}) == {}
