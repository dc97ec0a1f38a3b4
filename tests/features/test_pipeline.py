"""Features are made in groups, when a step asks for them, and never twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.features.pipeline import FeaturePipeline
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid
from tests.features.test_decode_process import PROCESSOR, draw


class RecordingTower(HfVisionTower):
    """A tower that records its calls: the features of an image are the first value of its first patch."""

    def __init__(self) -> None:
        self.calls: list[list[ImageGrid]] = []
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def __call__(self, grids: Sequence[ImageGrid], patches: torch.Tensor) -> torch.Tensor:
        self.calls.append(list(grids))
        firsts = [part[0, 0] for part in patches.split([g.h * g.w for g in grids])]
        return torch.cat([first.expand(g.num_tokens, 2) for g, first in zip(grids, firsts, strict=True)])


@pytest.fixture
def grids(tmp_path: Path) -> list[ImageGrid]:
    return [draw(tmp_path / f"{i}.png", seed=i) for i in range(6)]


def open_features(processor: ImageProcessor = PROCESSOR) -> tuple[RecordingTower, Features]:
    tower = RecordingTower()
    return tower, Features(tower, processor, is_live=False)


def test_groups_are_made_when_they_are_needed(grids: list[ImageGrid]) -> None:
    groups, counts = [grids[:2], grids[2:4], grids[4:]], list[int]()
    (tower, features), (_, before) = open_features(), open_features()
    pipeline = FeaturePipeline(features, groups)
    assert tower.calls == []
    assert pipeline.prepare([grids[1]], on_progress=counts.append) == {}
    assert tower.calls == groups[:1]
    assert pipeline.prepare(grids[:2]) == {}
    assert tower.calls == groups[:1], "they are there"
    assert grids[2] not in features
    assert pipeline.prepare([grids[4], grids[0]], on_progress=counts.append) == {}
    assert tower.calls == groups, "with all groups before"
    assert counts == [2, 2, 2]
    before.prepare(grids)
    assert torch.equal(features.gather(grids), before.gather(grids))
    assert not torch.equal(features.gather(grids), before.gather(grids[::-1]))
    assert pipeline.wait_seconds > 0


def test_an_error_is_told_when_its_image_is_needed(grids: list[ImageGrid], tmp_path: Path) -> None:
    broken = ImageGrid(Image(tmp_path / "none.png"), 1, 4, 6, 2)
    tower, features = open_features()
    pipeline = FeaturePipeline(features, [[grids[0], broken], grids[1:]])
    assert pipeline.prepare(grids[:1]) == {}
    for _ in range(2):
        errors = pipeline.prepare([grids[0], broken])
        assert list(errors) == [broken]
        assert "none.png" in str(errors[broken])
    assert tower.calls == [grids[:1]]


def test_other_images_may_be_prepared_meanwhile(grids: list[ImageGrid]) -> None:
    tower, features = open_features()
    pipeline = FeaturePipeline(features, [grids[:1], grids[1:3]])
    pipeline.prepare(grids[:1])
    features.prepare(grids[3:])
    pipeline.prepare(grids[:3])
    assert tower.calls == [grids[:1], grids[3:], grids[1:3]]


def test_decoding_ends_where_no_step_asks_for_the_rest(grids: list[ImageGrid]) -> None:
    _, features = open_features()
    pipeline = FeaturePipeline(features, [grids[:1], grids[1:]])
    pipeline.prepare(grids[:1])
    executor = pipeline._pool._executor
    assert executor is not None
    pipeline.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(len, "")


def test_the_tower_is_released_after_the_last_group(grids: list[ImageGrid], monkeypatch: pytest.MonkeyPatch) -> None:
    _, features = open_features()
    released = list[str]()
    monkeypatch.setattr(features, "release_tower", lambda: released.append("tower"))
    pipeline = FeaturePipeline(features, [grids[:1], grids[1:]])
    pipeline.prepare(grids[:1])
    assert released == []
    pipeline.prepare(grids)
    assert released == ["tower"]
