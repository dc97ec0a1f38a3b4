"""Deals pieces of work to the ranks, so that all have about the same to do.

A pure function of the sizes: every rank computes the shares of all and asks nobody. Needs no torch.
"""

import heapq
from collections.abc import Sequence


def split_between_ranks(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Each rank's indices of `sizes`, in ascending order; a rank may have none.

    The largest piece goes to the rank with the least so far (longest processing time first, Graham 1969): no rank has
    more than the mean plus the largest piece.
    """
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    # Sorting is stable: of equal pieces the first goes first, and of equal ranks the lowest takes it.
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + sizes[i], rank))
        shares[rank].append(i)
    return [sorted(share) for share in shares]
