"""A room is padded up so that recordings are few, and is used where not much of it is wasted."""

import pytest
import torch

from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.models.qwen2_vl.config import TextConfig

SHAPE = TextConfig(
    num_layers=2, hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=8, vocab_size=11, rms_norm_eps=1e-6, rope_theta=1e4,
    mrope_section=(1, 1, 0), tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 100, 256])
@pytest.mark.parametrize("places", [1, 64, 65, 150, 300, 4097])
def test_a_padded_room_holds_what_it_is_for(rows: int, places: int) -> None:
    need = CacheShape(rows, places)
    padded = need.round_up()
    assert padded.fits(need)
    assert padded.num_slots <= max(64, 2 * places if places < 128 else 1.3 * places)
    assert padded.num_rows <= max(8, 2 * rows)
    assert not padded.fits(CacheShape(padded.num_rows + 1, places))
    assert not padded.fits(CacheShape(rows, padded.num_slots + 1))


def test_a_large_room_is_not_for_a_small_batch() -> None:
    assert not CacheShape(256, 128).fits(CacheShape(8, 128))
    assert not CacheShape(8, 4096).fits(CacheShape(8, 128))


def test_places_are_the_rows_own() -> None:
    cache = KVCache.from_config(CacheShape(3, 5), SHAPE, torch.device("cpu"), torch.float32)
    assert len(cache.layers) == 2
    cache.view_slots(1, slice(1, 3))[0] = 7.0  # a view: what is written there is in the cache
    assert (cache.layers[1][1, 0] == 7).all()
    assert cache.layers[1].sum() == 7 * 2 * 4
    assert cache.row_offsets.tolist() == [0, 5, 10]
