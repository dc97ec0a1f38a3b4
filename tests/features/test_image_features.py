"""A picture goes through a frozen tower once; one that cannot be decoded is handed back with its reason."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import ProcessorSettings
from lorgnette.data import read_image_size
from lorgnette.errors import LorgnetteError
from lorgnette.features import image_features as module
from lorgnette.features.disk_cache import FeatureDiskCache
from lorgnette.features.image_features import Features, HfVisionTower, LazyTower
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CPU = torch.device("cpu")
WIDTH = 2


class Counted(HfVisionTower):
    """A tower that remembers what it was given: a picture's feature is its first patch's first number."""

    def __init__(self, device: str = "cpu") -> None:
        self.calls: list[list[ImageGrid]] = []
        self.device, self.dtype = torch.device(device), torch.float32

    def __call__(self, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        self.calls.append(list(grids))
        firsts = [part[0, 0] for part in patches.split([g.h * g.w for g in grids])]
        return torch.cat([first.expand(g.num_tokens, WIDTH) for g, first in zip(grids, firsts, strict=True)])


@pytest.fixture
def rule(tiny: Path) -> ImageProcessor:
    return ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


@pytest.fixture
def grids(rule: ImageProcessor, pictures: list[Path]) -> list[ImageGrid]:
    made = []
    for path in pictures:
        height, width = rule.compute_size(*read_image_size(path))
        made.append(ImageGrid(Image(path), 1, height // 14, width // 14, 2))
    return made


def test_a_frozen_tower_sees_each_picture_once(rule: ImageProcessor, grids: list[ImageGrid]) -> None:
    tower, seen = Counted(), []
    features = Features(tower, rule, is_live=False)
    assert features.prepare([grids[0], grids[1], grids[0]], on_progress=seen.append) == {}
    assert features.prepare(grids, on_progress=seen.append) == {}
    assert sorted((grid for call in tower.calls for grid in call), key=grids.index) == grids
    assert sum(seen) == len(grids)
    before = len(tower.calls)
    features.prepare(grids)
    features.gather(grids)
    assert len(tower.calls) == before


def test_features_come_in_the_order_asked_for(rule: ImageProcessor, grids: list[ImageGrid]) -> None:
    features = Features(Counted(), rule, is_live=False)
    features.prepare(grids)
    parts = [features.gather([grid]) for grid in grids]
    assert [len(part) for part in parts] == [grid.num_tokens for grid in grids]
    order = [3, 0, 5, 0]
    assert torch.equal(features.gather([grids[i] for i in order]), torch.cat([parts[i] for i in order]))


def test_a_live_tower_is_asked_in_every_pass(rule: ImageProcessor, grids: list[ImageGrid]) -> None:
    tower = Counted()
    features = Features(tower, rule, is_live=True)
    features.prepare(grids)
    assert tower.calls == []
    first, again = features.gather(grids[:2]), features.gather(grids[:2])
    assert tower.calls == [grids[:2]] * 2
    assert torch.equal(first, again)


@pytest.mark.parametrize("live", [False, True])
def test_a_picture_that_cannot_be_decoded_is_handed_back(
    rule: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, live: bool
) -> None:
    (tmp_path / "cut.png").write_bytes(grids[0].image.path.read_bytes()[:200])
    broken = [ImageGrid(Image(tmp_path / name), 1, 4, 4, 2) for name in ("cut.png", "none.png")]
    seen: list[int] = []
    features = Features(Counted(), rule, is_live=live)
    failed = features.prepare([broken[0], grids[0], broken[1]], on_progress=seen.append)
    assert list(failed) == broken
    assert all(error.message and error.hint for error in failed.values())
    assert sum(seen) == 3
    assert len(features.gather(grids[:1])) == grids[0].num_tokens


def test_nothing_but_broken_pictures_does_not_trouble_the_tower(rule: ImageProcessor, tmp_path: Path) -> None:
    tower = Counted()
    failed = Features(tower, rule, is_live=False).prepare([ImageGrid(Image(tmp_path / "none.png"), 1, 4, 4, 2)])
    assert len(failed) == 1
    assert tower.calls == []


def test_groups_bound_the_towers_memory_and_change_nothing(
    rule: ImageProcessor, grids: list[ImageGrid], loaded: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = loaded()
    whole, grouped = (Features(HfVisionTower(base), rule, is_live=False) for _ in range(2))
    whole.prepare(grids)
    monkeypatch.setattr(module, "MAX_PATCHES_PER_CALL", 20)
    sizes: list[int] = []
    grouped.prepare(grids, on_progress=sizes.append)
    assert len(sizes) > 3
    torch.testing.assert_close(grouped.gather(grids), whole.gather(grids), atol=1e-5, rtol=0)


def opened(folder: Path) -> FeatureDiskCache:
    return FeatureDiskCache(folder, "set", WIDTH, torch.float32)


def test_a_second_run_finds_the_features_and_makes_no_tower(
    rule: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    first = Features(Counted(), rule, is_live=False, disk_cache=opened(tmp_path))
    first.prepare(grids)
    wanted = first.gather(grids)
    assert first.close() is None

    def never() -> HfVisionTower:
        raise AssertionError

    second = Features(LazyTower(CPU, torch.float32, never), rule, is_live=False, disk_cache=opened(tmp_path))
    assert second.prepare(grids) == {}
    assert second.num_cached == len(grids)
    assert torch.equal(second.gather(grids), wanted)
    second.close()


def test_bytes_and_size_say_whether_a_picture_is_stored(
    rule: ImageProcessor, grids: list[ImageGrid], tiny: Path, tmp_path: Path
) -> None:
    first = Features(Counted(), rule, is_live=False, disk_cache=opened(tmp_path))
    first.prepare(grids[:1])
    first.close()
    (copied := tmp_path / "copied.png").write_bytes(grids[0].image.path.read_bytes())
    smaller = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))
    for other, grid, found in (
        (rule, ImageGrid(Image(copied), 1, grids[0].h, grids[0].w, 2), 1),
        (smaller, ImageGrid(Image(copied), 1, 4, 4, 2), 0),
        (rule, grids[1], 0),
    ):
        features = Features(tower := Counted(), other, is_live=False, disk_cache=opened(tmp_path))
        features.prepare([grid])
        assert (features.num_cached, len(tower.calls)) == (found, 1 - found)
        features.close()


def test_the_tower_is_made_once_and_only_when_it_is_needed(rule: ImageProcessor, grids: list[ImageGrid]) -> None:
    made: list[Counted] = []

    def make() -> Counted:
        made.append(Counted())
        return made[-1]

    features = Features(LazyTower(CPU, torch.float32, make), rule, is_live=False)
    assert made == []
    features.prepare(grids[:2])
    features.prepare(grids[2:])
    assert len(made) == 1


def test_a_tower_that_was_begun_is_waited_for_and_made_once(rule: ImageProcessor, grids: list[ImageGrid]) -> None:
    made: list[Counted] = []
    order: list[str] = []

    def make() -> Counted:
        order.append("made")
        made.append(Counted())
        return made[-1]

    late = LazyTower(CPU, torch.float32, make)
    features = Features(late, rule, is_live=False)
    assert features.lazy_tower is late
    with ThreadPoolExecutor(1) as pool:
        late.start_loading(pool, [pool.submit(order.append, "ready")])
        late.wait()
        assert order == ["ready", "made"]
        features.prepare(grids)
        assert len(made) == 1
    features.release_tower()
    features.prepare([replace(grids[0], t=2)])
    assert len(made) == 2  # given back, it is made again when it is needed


def test_a_tower_that_cannot_be_made_or_got_ready_says_so() -> None:
    def broken() -> Counted:
        raise LorgnetteError("weights cannot be loaded")

    with ThreadPoolExecutor(1) as pool:
        for make, ready in ((broken, list), (Counted, broken)):
            late = LazyTower(CPU, torch.float32, make)
            late.start_loading(pool, [pool.submit(ready)])
            with pytest.raises(LorgnetteError, match="cannot be loaded"):
                late.wait()


def test_a_tower_is_expected_where_no_picture_can_be_on_disk(
    rule: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    late = LazyTower(CPU, torch.float32, Counted)
    first = Features(late, rule, is_live=False, disk_cache=opened(tmp_path))
    assert first.lazy_tower is late
    first.prepare(grids[:1])
    first.close()
    again = Features(late, rule, is_live=False, disk_cache=opened(tmp_path))
    assert again.lazy_tower is None
    again.close()
    assert Features(Counted(), rule, is_live=False).lazy_tower is None  # it is there already


def test_a_live_tower_stores_nothing(rule: ImageProcessor, grids: list[ImageGrid], tmp_path: Path) -> None:
    features = Features(Counted(), rule, is_live=True, disk_cache=(store := opened(tmp_path)))
    features.prepare(grids)
    features.gather(grids)
    features.close()
    store.close()
    assert not (tmp_path / "set" / "rows").exists()


def test_a_store_that_cannot_be_written_is_reported_and_costs_nothing(
    rule: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.features.disk_cache.MAX_BYTES", 16)
    features = Features(Counted(), rule, is_live=False, disk_cache=opened(tmp_path))
    features.prepare(grids)
    assert len(features.gather(grids)) == sum(grid.num_tokens for grid in grids)
    error = features.close()
    assert error is not None
    assert error.message == "feature store is full"


@CUDA
@pytest.mark.parametrize("most", [0, 400, None])
def test_what_does_not_fit_the_device_lies_in_pinned_memory(
    rule: ImageProcessor, grids: list[ImageGrid], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int | None
) -> None:
    monkeypatch.setattr(module, "MAX_PATCHES_PER_CALL", 60)
    features = Features(Counted("cuda"), rule, is_live=False, device_bytes=most, disk_cache=opened(tmp_path))
    features.prepare(grids)
    held = {
        "device" if part.is_cuda else "pinned"
        for part in features._features.values()
        if part.is_cuda or part.is_pinned()
    }
    assert held == {0: {"pinned"}, 400: {"pinned", "device"}, None: {"device"}}[most]
    plain = Features(Counted(), rule, is_live=False)
    plain.prepare(grids)
    assert torch.equal(features.gather(grids).cpu(), plain.gather(grids))
    assert features.close() is None
    again = Features(Counted("cuda"), rule, is_live=False, disk_cache=opened(tmp_path))
    again.prepare(grids)
    assert again.num_cached == len(grids)
    assert torch.equal(again.gather(grids).cpu(), plain.gather(grids))
    again.close()


def test_our_tower_and_transformers_give_the_same_features(
    rule: ImageProcessor, grids: list[ImageGrid], loaded: Callable[[], Any], tiny: Path
) -> None:
    ours = LazyTower(
        CPU, torch.float32, lambda: VisionTower.from_checkpoint(BaseCheckpoint.from_folder(tiny), CPU, torch.float32)
    )
    made, wanted = (Features(tower, rule, is_live=False) for tower in (ours, HfVisionTower(loaded())))
    made.prepare(grids)
    wanted.prepare(grids)
    torch.testing.assert_close(made.gather(grids), wanted.gather(grids), atol=1e-5, rtol=0)
    assert not torch.allclose(made.gather(grids), wanted.gather(grids[::-1]), atol=1e-3)


def test_what_was_begun_is_what_is_prepared(
    rule: ImageProcessor, grids: list[ImageGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    load = module.load_picture

    def loading(path: Path) -> Any:
        looked.append(path)
        return load(path)

    monkeypatch.setattr(module, "load_picture", loading)
    plain, early = (Features(Counted(), rule, is_live=False) for _ in range(2))
    plain.prepare(grids)
    looked.clear()
    early.start_decoding(grids)
    assert early.prepare(grids) == {}
    assert early.prepare(grids) == {}
    assert sorted(looked) == sorted(grid.image.path for grid in grids), "each once"
    assert torch.equal(early.gather(grids), plain.gather(grids))
