"""The tail of the gradient tells every rank what all ranks have counted."""

from dataclasses import replace

import pytest
import torch

from lorgnette.distributed import TAIL
from lorgnette.training.step_counts import LOSS, NUM_PLACES, RankCounts, StepCounts

OWN = RankCounts(num_labels=3, num_tokens=10, wait_seconds=0.5, is_stopping=False, is_out_of_memory=False)


def add_up(ranks: list[RankCounts]) -> torch.Tensor:
    tails = [torch.full((TAIL,), 9.0) for _ in ranks]
    for rank, (tail, counts) in enumerate(zip(tails, ranks, strict=True)):
        counts.write(tail, torch.tensor(float(rank)), rank)
    return torch.stack(tails).sum(0)


def test_the_sum_of_the_tails_has_sums_and_maxima() -> None:
    tail = add_up([OWN, replace(OWN, num_tokens=30, is_out_of_memory=True), replace(OWN, wait_seconds=2.5)])
    assert tail[LOSS] == 3
    assert StepCounts.from_tail(tail.tolist(), 3) == StepCounts(
        num_labels=9, num_tokens=50, busiest_tokens=30.0, wait_seconds=2.5, is_stopping=False, is_out_of_memory=True
    )


@pytest.mark.parametrize("stopping", [0, 1, 2])
def test_one_rank_stops_all(stopping: int) -> None:
    tail = add_up([replace(OWN, is_stopping=rank == stopping) for rank in range(3)])
    counts = StepCounts.from_tail(tail.tolist(), 3)
    assert (counts.is_stopping, counts.is_out_of_memory) == (True, False)


def test_many_ranks_share_places() -> None:
    """Two in the first place, one in each other: the mean of the two counts."""
    num_ranks = NUM_PLACES + 1
    ranks = [replace(OWN, num_tokens=100 + rank, wait_seconds=float(rank)) for rank in range(num_ranks)]
    counts = StepCounts.from_tail(add_up(ranks).tolist(), num_ranks)
    assert counts.num_tokens == sum(rank.num_tokens for rank in ranks)
    assert counts.num_labels == 3 * num_ranks
    assert (counts.busiest_tokens, counts.wait_seconds) == (100 + NUM_PLACES - 1, NUM_PLACES - 1)
    even = StepCounts.from_tail(add_up([OWN] * num_ranks).tolist(), num_ranks)
    assert even.busiest_tokens * num_ranks == even.num_tokens
