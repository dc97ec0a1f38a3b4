"""Pieces run in order on a CPU; on a GPU their memory is kept until they are done."""

import pytest
import torch

from lorgnette.side_stream import SideStream

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_a_piece_runs_at_once_on_a_cpu() -> None:
    done: list[int] = []
    side_stream = SideStream(torch.device("cpu"))
    side_stream.launch(lambda: done.append(1), lambda: done.append(2))
    assert done == [1, 2]
    side_stream.join()
    assert done == [1, 2]


@CUDA
@pytest.mark.parametrize("captured", [False, True])
def test_memory_is_kept_while_a_piece_reads_it(captured: bool) -> None:
    """The launching code drops its tensors at once, and then writes over memory of the same size."""
    device = torch.device("cuda")
    side_stream, big = SideStream(device), torch.randn(4096, 4096, device=device)
    means = torch.zeros(8, device=device)

    def work() -> None:
        means.zero_()
        for i in range(8):
            values = torch.full((4096, 4096), float(i), device=device)

            def piece(values: torch.Tensor = values, i: int = i) -> None:
                big @ big  # delays the read of `values` until after it was dropped
                means[i] += values.mean()

            side_stream.launch(piece)
            del values, piece
            for _ in range(4):
                torch.full((4096, 4096), -1.0, device=device)
        side_stream.join()

    work()
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        means.fill_(9)
        graph.replay()
    assert means.tolist() == list(range(8))
