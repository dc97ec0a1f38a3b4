"""Device and dtype are selected by name; memory is measured; work on a second stream keeps its memory."""

import pytest
import torch

from lorgnette.device import SideStream, measure_peak_gib, measure_reserved_gib, select_device, select_dtype
from lorgnette.errors import LorgnetteError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_auto_selects_cuda_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert select_device("auto") == (CUDA if available else CPU)
        assert select_device("cpu") == CPU


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LorgnetteError, match=r"no CUDA device found · device=cuda · use device="):
        select_device("cuda")


def test_dtype_depends_on_the_device_unless_given() -> None:
    assert select_dtype("auto", CUDA) == select_dtype("bfloat16", CPU) == torch.bfloat16
    assert select_dtype("auto", CPU) == select_dtype("float32", CUDA) == torch.float32


def test_peak_memory_of_a_process() -> None:
    assert 0.01 < measure_peak_gib(CPU) < 10_000


def test_only_a_gpu_has_reserved_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_reserved_gib(CPU) is None
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    assert measure_reserved_gib(CUDA) == 3


def test_a_piece_runs_at_once_on_a_cpu() -> None:
    done: list[int] = []
    side_stream = SideStream(torch.device("cpu"))
    side_stream.launch(lambda: done.append(1), lambda: done.append(2))
    assert done == [1, 2]
    side_stream.join()
    assert done == [1, 2]


@NEEDS_CUDA
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
