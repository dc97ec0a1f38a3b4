"""What ranks exchange, over gloo on loopback."""

import pytest
import torch

from lorgnette.distributed import TAIL, World, allocate_flat_grad, has_world, join_world
from lorgnette.rank_status import RankStatus, allocate_table
from tests.ranks import run_ranks


def exchange(world: World) -> dict[str, object]:
    total = torch.tensor([1.0, world.rank])
    world.all_reduce(total)
    world.barrier()
    return {
        "sum": total.tolist(), "objects": world.gather_objects(f"rank {world.rank}"),
        "first": world.broadcast_object(world.rank + 7), "is_main": world.is_main,
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 3])
def test_every_rank_gets_the_same(size: int) -> None:
    results = run_ranks(exchange, size)
    for rank, result in enumerate(results):
        assert result == {
            "sum": [size, size * (size - 1) / 2], "first": 7, "is_main": rank == 0,
            "objects": [f"rank {other}" for other in range(size)],
        }  # fmt: skip


def fail_on_rank_1(world: World) -> None:
    if world.rank == 1:
        raise ValueError("of rank 1")


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(AssertionError, match=r"rank 1:[\s\S]*ValueError: of rank 1"):
        run_ranks(fail_on_rank_1, 2)


def test_a_world_is_of_several_processes() -> None:
    assert has_world({"WORLD_SIZE": "2"})
    assert not has_world({"WORLD_SIZE": "1"})
    assert not has_world({})


def test_ranks_that_connect_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that is stopped meanwhile ends at once if the others wait, and after minutes if they seem to work."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    status, seen = RankStatus(1, allocate_table(2)), list[bool]()

    def connect(*_: object, **__: object) -> None:
        seen.append(bool(status.row["is_waiting"]))

    monkeypatch.setattr(torch.distributed, "init_process_group", connect)
    monkeypatch.setattr(torch.distributed, "new_group", connect)
    world = join_world("cpu", status)
    assert (world.rank, world.status, seen) == (1, status, [True, True])
    assert not status.row["is_waiting"]


def test_gradients_are_one_vector_with_a_tail() -> None:
    """autograd adds to it."""
    parameters = [torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)]
    flat_grad = allocate_flat_grad(parameters)
    assert flat_grad.shape == (10 + TAIL,)
    for factor in (1.0, 2.0):
        (factor * (parameters[0].sum() + 3 * parameters[1].sum())).backward()
    assert flat_grad.tolist() == [3.0] * 6 + [9.0] * 4 + [0.0] * TAIL


def count_in_parts(world: World) -> list[int]:
    counts: list[int] = []
    advance = world.share_progress("work", counts.append)
    for amount in (1, 2):
        world.barrier()
        advance(amount)
    world.barrier()
    advance(0)
    return counts


def test_rank_0_shows_what_all_ranks_have_done() -> None:
    first, *others = run_ranks(count_in_parts, 3)
    assert (sum(first), len(first)) == (9, 3)
    assert others == [[], []]
    assert count_in_parts(World()) == [1, 2, 0]
