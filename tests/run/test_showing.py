"""`demo`: what is looked at before anything is drawn, what is drawn, and how answers are judged."""

import csv
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.errors import UsageError
from lorgnette.report.predictions import PredictionRow
from lorgnette.report.terminal import Terminal
from lorgnette.run import demo, showing


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
    scenes = showing._drawn(tmp_path, 8, terminal)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [tmp_path / row["image_path"] for row in rows] == list(scenes)
    assert all(row["caption"] for row in rows)
    for path in scenes:
        with PIL.Image.open(path) as picture:
            assert min(picture.size) > 28


def test_scores_count_what_is_right(tmp_path: Path, terminal: Terminal) -> None:
    scenes = showing._drawn(tmp_path, 8, terminal)
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    rows = [
        PredictionRow(str(path), (path,), "", caption, base="nothing", tuned=caption)
        for path, caption in zip(scenes, captions, strict=True)
    ]
    scores = {name: (before, after) for name, before, after in showing._scores(rows, scenes)}
    assert scores["both objects right"] == ("0 of 8", "8 of 8")
    assert scores["all three right"] == ("0 of 8", "8 of 8")


def test_other_data_has_no_scores(tmp_path: Path) -> None:
    """`lorgnette demo data=mine.csv`: nobody drew those."""
    assert showing._scores([], {}) == []
    assert showing._scores([PredictionRow("a", (tmp_path / "a.png",), "", "")], {}) == []
