"""Every rank has random numbers of its own; they go on after a resume, and begin anew with other ranks."""

import torch

from lorgnette.distributed import World
from lorgnette.training.random_state import get_rng_state, seed_rank, set_rng_state

CPU = torch.device("cpu")


def draw(rank: int = 0, *, seed: int = 7, step: int = 0) -> list[float]:
    seed_rank(seed, step, World(rank, 4))
    return torch.rand(4).tolist()


def test_seed_step_and_rank_select_the_numbers() -> None:
    assert draw() == draw()
    draws = [draw(), draw(1), draw(2), draw(step=1), draw(seed=8)]
    assert len({tuple(numbers) for numbers in draws}) == len(draws)


def test_each_rank_gets_its_own_state_back() -> None:
    states, expected = [], []
    for rank in range(2):
        seed_rank(7, 0, World(rank, 2))
        states.append(get_rng_state())
        expected.append(torch.rand(4).tolist())
    for rank in range(2):
        set_rng_state(states, CPU, World(rank, 2), (7, 3))
        assert torch.rand(4).tolist() == expected[rank]


def test_other_ranks_begin_anew_at_the_step() -> None:
    set_rng_state([get_rng_state()] * 2, CPU, World(1, 3), (7, 3))
    assert torch.rand(4).tolist() == draw(1, step=3)
