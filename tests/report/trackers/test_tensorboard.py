from pathlib import Path

import pytest
from PIL import Image

from lorgnette.report.trackers.tensorboard import TensorboardTracker
from lorgnette.types import PredictionRow

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def test_logged_values_can_be_read_back(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "one.png")
    tracker = TensorboardTracker("project", "experiment", tmp_path, print)
    assert tracker.address is None
    tracker.start({"lora": {"r": 64}, "path": tmp_path})
    for step in range(1, 4):
        tracker.log({"train/loss": 1 / step, "train/learning_rate": float("nan")}, step)
    row = PredictionRow("identity_1", (tmp_path / "one.png", tmp_path / "gone.png"), "p", ("a cat",), "the", "一只猫")
    tracker.log_predictions([row], 3)
    tracker.finish()
    assert tracker.address == f"tensorboard --logdir {tmp_path / 'tensorboard'}"

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("train/loss")] == [
        (1, 1.0), (2, 0.5), (3, 0.333)
    ]  # fmt: skip
    assert events.Tags()["images"] == ["Prediction/identity_1"]
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    assert '"r": 64' in texts["settings/text_summary"]
    assert "after: 一只猫" in texts["Prediction/identity_1/text_summary"]
