"""Every card has tiles that the plan and the kernels can use."""

import pytest

from lorgnette.kernels import MAX_GROUP_SIZE
from lorgnette.kernels.attention import REDUCE_KEYS
from lorgnette.kernels.tiles import AttentionTiles, find_tiles
from lorgnette.types import Capability

CARDS = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.mark.parametrize("capability", CARDS)
def test_a_tile_holds_all_heads_of_a_query(capability: Capability) -> None:
    tiles = find_tiles(capability)
    assert min(tiles.block_m, tiles.bwd_block_m) >= MAX_GROUP_SIZE
    assert tiles.block_n % REDUCE_KEYS == 0


def test_cards_take_the_tiles_of_the_nearest_earlier_one() -> None:
    small, large = find_tiles((7, 5)), find_tiles((8, 0))
    assert small != large
    assert find_tiles((7, 0)) is small
    assert all(find_tiles(later) is large for later in ((8, 6), (8, 9), (9, 0), (10, 3), (12, 0), (13, 0)))


def test_data_centre_cards_keep_their_tiles() -> None:
    """Other tiles would change the order of the sums, and with it every trained adapter."""
    assert find_tiles((9, 0)) == AttentionTiles(64, 64, 32, 4, 2, 64)
