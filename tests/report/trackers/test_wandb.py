import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.errors import UsageError
from lorgnette.report.trackers.wandb import WandbTracker, select_mode
from lorgnette.types import PredictionRow

# Imported in the tests: its import takes long, and every worker collects this file.
pytestmark = pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")


@pytest.fixture(autouse=True)
def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no mode, an empty home."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_the_mode_follows_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_mode() == "offline"
    (tmp_path / "home/.netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "home/.netrc").chmod(0o600)
    assert select_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example")
    assert select_mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert select_mode() == "offline"  # W&B would ask for a key
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert select_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert select_mode() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UsageError, match="WANDB_MODE"):
        select_mode()


def test_without_a_key_it_records_in_the_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "openai", raising=False)  # another test's: W&B would advise its users
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "one.png")
    warnings: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    tracker = WandbTracker("project", "experiment", folder, warnings.append)
    assert tracker.address is None
    tracker.start({"lora": {"r": 64}, "path": tmp_path})
    tracker.log({"train/loss": 1.0}, 1)
    tracker.log({"train/loss": 0.5}, 2)
    tracker.log_predictions([PredictionRow("a", (tmp_path / "one.png",), "p", ("a cat",), "b", "一只猫")], 2)
    tracker.finish()
    (record,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert record.stat().st_size > 100
    assert b"train/loss" in record.read_bytes()
    assert list((folder / "wandb").glob("offline-run-*/files/media/images/Prediction_2_*.png"))
    assert tracker.address == f"wandb sync {record.parent}"
    assert list((tmp_path / "home").rglob("*")) == []
    assert warnings == []
    assert capfd.readouterr() == ("", "")
