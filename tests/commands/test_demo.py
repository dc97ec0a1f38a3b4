"""`demo`: what is looked at before anything is drawn, what is drawn, and how answers are judged."""

import csv
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.commands import demo as demo_module
from lorgnette.commands.demo import demo
from lorgnette.errors import UsageError
from lorgnette.metrics.held_out import score_before_after
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow


def test_words_and_place_are_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean train\.lr"):
        demo(words=["train.lrr=1"])
    (tmp_path / "mine.txt").touch()
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="something stands here already"):
            demo(taken)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_is_drawn(tmp_path: Path, terminal: Terminal) -> None:
    demo_module._draw_dataset(tmp_path, 8, terminal)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(row["caption"] for row in rows)
    for row in rows:
        with PIL.Image.open(tmp_path / row["image_path"]) as picture:
            assert min(picture.size) > 28


def test_what_is_drawn_can_be_judged_by_its_caption(tmp_path: Path, terminal: Terminal) -> None:
    """So that a resumed run, which has no scenes, has the same scores."""
    demo_module._draw_dataset(tmp_path, 8, terminal)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    rows = [PredictionRow("", (), "", (caption,), base="nothing", tuned=caption) for caption in captions]
    scores = {score.name: (score.before, score.after) for score in score_before_after(rows, ["demo"])}
    assert scores["both objects right"] == ("0 of 8", "8 of 8")
    assert scores["all three right"] == ("0 of 8", "8 of 8")
