"""A picture goes through a frozen tower once; one that cannot be decoded is handed back with its reason."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import Encode
from lorgnette.data import header
from lorgnette.encode.pixels import PictureRule
from lorgnette.model import features as module
from lorgnette.model.features import Features, Tower
from lorgnette.types import Picture, PictureGrid


class Counted(Tower):
    """A tower that remembers what it was given: a picture's feature is its first patch's first number."""

    def __init__(self) -> None:
        self.calls: list[list[PictureGrid]] = []

    def __call__(self, grids: Sequence[PictureGrid], patches: Sequence[np.ndarray]) -> Tensor:
        self.calls.append(list(grids))
        assert [len(p) for p in patches] == [g.h * g.w for g in grids]
        return torch.cat([torch.full((g.tokens, 2), float(p[0, 0])) for g, p in zip(grids, patches, strict=True)])


@pytest.fixture
def rule(tiny: Path) -> PictureRule:
    return PictureRule.of_folder(tiny, Encode(size=None, image_tokens=(4, 30)))


@pytest.fixture
def grids(rule: PictureRule, pictures: list[Path]) -> list[PictureGrid]:
    made = []
    for path in pictures:
        height, width = rule.resized(*header(path))
        made.append(PictureGrid(Picture(path), 1, height // 14, width // 14, 2))
    return made


def test_a_frozen_tower_sees_each_picture_once(rule: PictureRule, grids: list[PictureGrid]) -> None:
    tower, seen = Counted(), []
    features = Features(tower, rule, live=False)
    assert features.prepare([grids[0], grids[1], grids[0]], seen=seen.append) == {}
    assert features.prepare(grids, seen=seen.append) == {}
    assert sorted((grid for call in tower.calls for grid in call), key=grids.index) == grids
    assert sum(seen) == len(grids)
    before = len(tower.calls)
    features.prepare(grids)
    features.of(grids)
    assert len(tower.calls) == before


def test_features_come_in_the_order_asked_for(rule: PictureRule, grids: list[PictureGrid]) -> None:
    features = Features(Counted(), rule, live=False)
    features.prepare(grids)
    parts = [features.of([grid]) for grid in grids]
    assert [len(part) for part in parts] == [grid.tokens for grid in grids]
    order = [3, 0, 5, 0]
    assert torch.equal(features.of([grids[i] for i in order]), torch.cat([parts[i] for i in order]))


def test_a_live_tower_is_asked_in_every_pass(rule: PictureRule, grids: list[PictureGrid]) -> None:
    tower = Counted()
    features = Features(tower, rule, live=True)
    features.prepare(grids)
    assert tower.calls == []
    first, again = features.of(grids[:2]), features.of(grids[:2])
    assert tower.calls == [grids[:2]] * 2
    assert torch.equal(first, again)


@pytest.mark.parametrize("live", [False, True])
def test_a_picture_that_cannot_be_decoded_is_handed_back(
    rule: PictureRule, grids: list[PictureGrid], tmp_path: Path, live: bool
) -> None:
    (tmp_path / "cut.png").write_bytes(grids[0].picture.path.read_bytes()[:200])
    broken = [PictureGrid(Picture(tmp_path / name), 1, 4, 4, 2) for name in ("cut.png", "none.png")]
    seen: list[int] = []
    features = Features(Counted(), rule, live=live)
    failed = features.prepare([broken[0], grids[0], broken[1]], seen=seen.append)
    assert list(failed) == broken
    assert all(error.what and error.remedy for error in failed.values())
    assert sum(seen) == 3
    assert len(features.of(grids[:1])) == grids[0].tokens


def test_nothing_but_broken_pictures_does_not_trouble_the_tower(rule: PictureRule, tmp_path: Path) -> None:
    tower = Counted()
    failed = Features(tower, rule, live=False).prepare([PictureGrid(Picture(tmp_path / "none.png"), 1, 4, 4, 2)])
    assert len(failed) == 1
    assert tower.calls == []


def test_groups_bound_the_towers_memory_and_change_nothing(
    rule: PictureRule, grids: list[PictureGrid], loaded: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = loaded()
    whole, grouped = (Features(Tower(base), rule, live=False) for _ in range(2))
    whole.prepare(grids)
    monkeypatch.setattr(module, "PATCHES_AT_ONCE", 20)
    sizes: list[int] = []
    grouped.prepare(grids, seen=sizes.append)
    assert len(sizes) > 3
    torch.testing.assert_close(grouped.of(grids), whole.of(grids), atol=1e-5, rtol=0)
