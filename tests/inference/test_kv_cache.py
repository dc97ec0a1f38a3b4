"""A room is padded up so that recordings are few, and is used where not much of it is wasted."""

import pytest
import torch

from lorgnette.inference.kv_cache import Cache, Room
from lorgnette.models.qwen2_vl.config import TextShape

SHAPE = TextShape(
    layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, mlp=8, vocab=11, eps=1e-6, rope_theta=1e4,
    mrope_section=(1, 1, 0), tied=True,
)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 100, 256])
@pytest.mark.parametrize("places", [1, 64, 65, 150, 300, 4097])
def test_a_padded_room_holds_what_it_is_for(rows: int, places: int) -> None:
    need = Room(rows, places)
    padded = need.padded()
    assert padded.holds(need)
    assert padded.places <= max(64, 2 * places if places < 128 else 1.3 * places)
    assert padded.rows <= max(8, 2 * rows)
    assert not padded.holds(Room(padded.rows + 1, places))
    assert not padded.holds(Room(rows, padded.places + 1))


def test_a_large_room_is_not_for_a_small_batch() -> None:
    assert not Room(256, 128).holds(Room(8, 128))
    assert not Room(8, 4096).holds(Room(8, 128))


def test_places_are_the_rows_own() -> None:
    cache = Cache.of(Room(3, 5), SHAPE, torch.device("cpu"), torch.float32)
    assert len(cache.layers) == 2
    cache.places(1, slice(1, 3))[0] = 7.0  # a view: what is written there is in the cache
    assert (cache.layers[1][1, 0] == 7).all()
    assert cache.layers[1].sum() == 7 * 2 * 4
    assert cache.begins.tolist() == [0, 5, 10]
