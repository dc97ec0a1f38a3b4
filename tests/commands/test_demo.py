"""`demo`: settings and folder are checked first; the drawn data set and the facts of its answers."""

import csv
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.commands import demo as demo_module
from lorgnette.commands.demo import demo
from lorgnette.demo.facts_metric import register_facts_metric
from lorgnette.errors import UsageError
from lorgnette.metrics.report import score_before_after
from lorgnette.report.console import Terminal
from lorgnette.types import PredictionRow


def test_settings_and_folder_are_checked_before_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean train\.learning_rate"):
        demo(overrides=["train.learning_rat=1"])
    (tmp_path / "mine.txt").touch()
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="this folder is not empty"):
            demo(path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_drawn_data_set(tmp_path: Path, terminal: Terminal) -> None:
    demo_module._draw_dataset(tmp_path, 8, terminal)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(row["caption"] for row in rows)
    for row in rows:
        with PIL.Image.open(tmp_path / row["image_path"]) as image:
            assert min(image.size) > 28


def test_an_answer_is_scored_against_the_caption(tmp_path: Path, terminal: Terminal) -> None:
    """A resumed run has no scenes, and gets the same scores."""
    register_facts_metric()
    demo_module._draw_dataset(tmp_path, 8, terminal)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    rows = [PredictionRow("", (), "", (caption,), base="nothing", tuned=caption) for caption in captions]
    scores = {score.name: (score.before, score.after) for score in score_before_after(rows, ["demo"])}
    assert scores["both objects right"] == ("0 of 8", "8 of 8")
    assert scores["all three right"] == ("0 of 8", "8 of 8")
