"""Features make way for new ones within a limit of bytes, and equal those that `Features` makes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import ProcessorSettings
from lorgnette.data import load_resized, read_image_size
from lorgnette.engine.loading import build_features
from lorgnette.features import decode_pool
from lorgnette.features.decode_pool import Pixels
from lorgnette.features.feature_lru import FeatureLru
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

WIDTH = 2


class Tower:
    """Records its calls. The features of an image are the first value of its first patch: 8 bytes a token."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.calls: list[list[ImageGrid]] = []

    def __call__(self, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        self.calls.append(list(grids))
        firsts = [part[0, 0] for part in patches.split([g.h * g.w for g in grids])]
        return torch.cat([first.expand(g.num_tokens, WIDTH) for g, first in zip(grids, firsts, strict=True)])


@pytest.fixture
def image_processor(tiny: Path) -> ImageProcessor:
    return ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


def make_images(count: int) -> dict[ImageGrid, Pixels]:
    """Gray images of four tokens, 32 bytes of features each."""
    grids = [ImageGrid(Image(Path(str(number))), 1, 4, 4, 2) for number in range(count)]
    return {grid: np.full((56, 56, 3), 10 * number, np.uint8) for number, grid in enumerate(grids)}


def test_features_equal_those_of_training(tiny: Path, image_processor: ImageProcessor, image_files: list[Path]) -> None:
    checkpoint, cpu = BaseCheckpoint.from_folder(tiny), torch.device("cpu")
    features = build_features(checkpoint, image_processor, cpu, torch.float32)
    grids = []
    for path in image_files:
        height, width = image_processor.compute_size(*read_image_size(path))
        grids.append(ImageGrid(Image(path), 1, height // 14, width // 14, 2))
    features.prepare(grids)
    lru = FeatureLru(features._tower, image_processor)
    by_files = FeatureLru(features._tower, replace(image_processor, size=(28, 28)))  # the grids say the size
    lru.encode({grid: load_resized(grid.image.path, image_processor.resize) for grid in grids})
    by_files.prepare(grids)
    order = [grids[i] for i in (3, 0, 5, 0)]
    torch.testing.assert_close(lru.gather(order), features.gather(order))
    assert torch.equal(by_files.gather(order), lru.gather(order))
    assert lru.num_bytes == lru.gather(grids).nbytes
    with pytest.raises(AssertionError):
        torch.testing.assert_close(lru.gather(order), features.gather([grids[i] for i in (3, 0, 5, 1)]))


def test_an_image_is_encoded_once_while_it_is_kept(image_processor: ImageProcessor) -> None:
    tower = Tower()
    lru, images = FeatureLru(tower, image_processor), make_images(3)
    first, second, third = images
    lru.encode({first: images[first], second: images[second]})
    lru.encode({second: images[second], third: images[third]})
    assert tower.calls == [[first, second], [third]]
    assert lru.gather([third, first]).tolist() == [*lru.gather([third]).tolist(), *lru.gather([first]).tolist()]


def test_those_asked_for_longest_ago_make_way(image_processor: ImageProcessor) -> None:
    lru, images = FeatureLru(Tower(), image_processor, max_bytes=100), make_images(5)
    grids = list(images)
    for grid in [*grids[:3], grids[0], grids[3]]:
        lru.encode({grid: images[grid]})
        assert lru.num_bytes <= 100
    assert [grid in lru for grid in grids] == [True, False, True, True, False]
    lru.encode({grids[1]: images[grids[1]]})
    assert [grid in lru for grid in grids] == [True, True, False, True, False]


def test_what_one_call_asks_for_is_never_dropped(
    image_processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool, "MAX_PATCHES_PER_CALL", 32)  # two images
    tower = Tower()
    lru, images = FeatureLru(tower, image_processor, max_bytes=70), make_images(6)
    grids = list(images)
    lru.encode({grids[5]: images[grids[5]]})
    lru.encode({grid: images[grid] for grid in grids[:5]})
    assert [grid in lru for grid in grids] == [True] * 5 + [False]
    assert lru.gather(grids[:5]).shape == (20, WIDTH)
    assert max(map(len, tower.calls)) == 2
    lru.encode({grids[0]: images[grids[0]]})  # it is kept; the next call for a new one makes room
    lru.encode({grids[5]: images[grids[5]]})
    assert [grid in lru for grid in grids] == [True] + [False] * 4 + [True]
    assert lru.num_bytes == 64


def test_a_group_s_memory_goes_with_its_last_image(image_processor: ImageProcessor) -> None:
    """Kept features are no views of a larger tensor."""
    lru, images = FeatureLru(Tower(), image_processor), make_images(4)
    lru.encode(images)
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in lru._features.values())


def test_memory_that_is_short_keeps_what_there_was(image_processor: ImageProcessor) -> None:
    class Short(Tower):
        def __call__(self, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
            if self.calls:
                raise torch.OutOfMemoryError("short")
            return super().__call__(grids, patches)

    lru, images = FeatureLru(Short(), image_processor), make_images(2)
    first, second = images
    lru.encode({first: images[first]})
    with pytest.raises(torch.OutOfMemoryError):
        lru.encode(images)
    assert first in lru
    assert second not in lru
    assert lru.num_bytes == 32
    lru.clear()
    assert first not in lru
    assert lru.num_bytes == 0


def test_an_image_that_cannot_be_decoded_is_returned(image_processor: ImageProcessor, tmp_path: Path) -> None:
    grid = ImageGrid(Image(tmp_path / "none.png"), 1, 4, 4, 2)
    lru = FeatureLru(Tower(), image_processor)
    assert list(lru.prepare([grid])) == [grid]
    assert grid not in lru
