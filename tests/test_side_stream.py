"""Work beside the work: in order on a CPU; on a GPU read while the first stream goes on, and kept until it is done."""

import pytest
import torch

from lorgnette.side_stream import SideStream

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_on_a_cpu_a_piece_is_done_at_once() -> None:
    done: list[int] = []
    beside = SideStream(torch.device("cpu"))
    beside.launch(lambda: done.append(1), lambda: done.append(2))
    assert done == [1, 2]
    beside.join()
    assert done == [1, 2]


@CUDA
@pytest.mark.parametrize("recorded", [False, True])
def test_memory_is_kept_while_a_piece_reads_it(recorded: bool) -> None:
    """Tensors are dropped by their maker at once, and memory like theirs is written all over."""
    device = torch.device("cuda")
    beside, big = SideStream(device), torch.randn(4096, 4096, device=device)
    totals = torch.zeros(8, device=device)

    def work() -> None:
        totals.zero_()
        for i in range(8):
            made = torch.full((4096, 4096), float(i), device=device)

            def piece(made: torch.Tensor = made, i: int = i) -> None:
                big @ big  # made is read long after it was dropped
                totals[i] += made.mean()

            beside.launch(piece)
            del made, piece
            for _ in range(4):
                torch.full((4096, 4096), -1.0, device=device)
        beside.join()

    work()
    if recorded:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        totals.fill_(9)
        graph.replay()
    assert totals.tolist() == list(range(8))
