"""Cache shapes are rounded up, so that few graphs are captured, and are reused unless much is wasted."""

import pytest
import torch

from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.models.model_config import TextConfig

CONFIG = TextConfig(
    num_layers=2, hidden_size=8, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=8, vocab_size=11,
    rms_norm_eps=1e-6, rope_theta=1e4, mrope_section=(1, 1, 0), tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize("num_rows", [1, 3, 8, 9, 100, 256])
@pytest.mark.parametrize("num_slots", [1, 64, 65, 150, 300, 4097])
def test_a_rounded_shape_fits_its_request(num_rows: int, num_slots: int) -> None:
    shape = CacheShape(num_rows, num_slots)
    rounded = shape.round_up()
    assert rounded.fits(shape)
    assert rounded.num_slots <= max(64, 2 * num_slots if num_slots < 128 else 1.3 * num_slots)
    assert rounded.num_rows <= max(8, 2 * num_rows)
    assert not rounded.fits(CacheShape(rounded.num_rows + 1, num_slots))
    assert not rounded.fits(CacheShape(num_rows, rounded.num_slots + 1))


def test_a_large_shape_does_not_fit_a_small_batch() -> None:
    assert not CacheShape(256, 128).fits(CacheShape(8, 128))
    assert not CacheShape(8, 4096).fits(CacheShape(8, 128))


def test_slots_are_views_of_their_rows() -> None:
    cache = KVCache.from_config(CacheShape(3, 5), CONFIG, torch.device("cpu"), torch.float32)
    assert len(cache.layers) == 2
    cache.view_slots(1, slice(1, 3))[0] = 7.0  # a view: the write is in the cache
    assert (cache.layers[1][1, 0] == 7).all()
    assert cache.layers[1].sum() == 7 * 2 * 4
    assert cache.row_offsets.tolist() == [0, 5, 10]
