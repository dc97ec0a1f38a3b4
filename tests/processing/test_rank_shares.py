"""Every piece goes to one rank, and no rank has more than the mean plus the largest piece."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.processing.rank_shares import split_between_ranks


@given(sizes=st.lists(st.integers(0, 2000), max_size=60), num_ranks=st.integers(1, 9))
def test_every_piece_goes_to_one_rank_and_the_loads_are_even(sizes: list[int], num_ranks: int) -> None:
    shares = split_between_ranks(sizes, num_ranks)
    assert len(shares) == num_ranks
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) <= sum(sizes) / num_ranks + max(sizes, default=0)
    # Half the bound at most lies between two ranks.
    assert max(loads) - min(loads) <= max(sizes, default=0)


def test_the_largest_pieces_are_dealt_first() -> None:
    assert split_between_ranks([1, 5, 2, 4, 3], 2) == [[0, 1, 2], [3, 4]]
    assert split_between_ranks([7, 7, 7], 2) == [[0, 2], [1]]
    assert split_between_ranks([3], 3) == [[0], [], []]
    assert split_between_ranks([], 2) == [[], []]
    assert split_between_ranks([2, 9, 4], 1) == [[0, 1, 2]]


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_dealing_in_turn_is_less_even(num_ranks: int) -> None:
    """As the lengths of a step with images of several sizes."""
    sizes = [255 + 316 * i // 63 for i in range(64)]
    mean = sum(sizes) / num_ranks
    dealt = max(sum(sizes[i] for i in share) for share in split_between_ranks(sizes, num_ranks)) / mean - 1
    in_turn = max(sum(sizes[rank::num_ranks]) for rank in range(num_ranks)) / mean - 1
    assert dealt < 0.001 < in_turn
