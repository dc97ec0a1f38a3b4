"""Features come back in the order asked for. (Device and pinned memory: test_image_features.py, on CUDA.)"""

from pathlib import Path

import torch

from lorgnette.features.feature_storage import FeatureStorage
from lorgnette.types import Image, ImageGrid

GRIDS = [ImageGrid(Image(Path(f"{i}.png")), 1, 2 * (i + 1), 2, 2) for i in range(3)]


def test_added_features_are_gathered_in_any_order() -> None:
    storage = FeatureStorage(torch.device("cpu"), torch.float32)
    features = torch.arange(6.0)[:, None].expand(6, 2)
    assert storage.add(GRIDS, features) is features
    assert all(grid in storage for grid in GRIDS)
    assert storage.gather([GRIDS[2], GRIDS[0]])[:, 0].tolist() == [3, 4, 5, 0]


def test_mapped_features_are_kept_without_a_copy() -> None:
    storage, mapped = FeatureStorage(torch.device("cpu"), torch.float32), torch.ones(1, 2)
    storage.add_mapped({GRIDS[0]: mapped})
    assert GRIDS[0] in storage
    assert GRIDS[1] not in storage
    mapped.fill_(2.0)
    assert storage.gather(GRIDS[:1]).tolist() == [[2.0, 2.0]]
