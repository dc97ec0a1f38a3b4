"""Device and dtype are selected by name; memory is measured; work on a second stream keeps its memory."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakSet

import numpy as np
import pytest
import torch

from lorgnette import device as device_module
from lorgnette.device import (
    PINNED_PIECE_BYTES,
    SideStream,
    allocate_graph,
    copy_to_host,
    has_flash_attention,
    join_arrays,
    leave_core_free,
    may_pin,
    measure_peak_gib,
    measure_reserved_gib,
    release_workspaces,
    select_device,
    select_dtype,
    split_array,
    split_each_row,
)
from lorgnette.errors import LorgnetteError
from tests.device_copies import copies_on_a_stream

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SetGpu = Callable[[str, int, int], None]


@pytest.fixture
def set_gpu(monkeypatch: pytest.MonkeyPatch) -> SetGpu:
    """set_gpu("Tesla T4", 7, 5): this machine has that GPU, of that compute capability."""

    def set_gpu(name: str, major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    return set_gpu


def test_auto_selects_cuda_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert select_device("auto") == (CUDA if available else CPU)
        assert select_device("cpu") == CPU


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LorgnetteError, match=r"no CUDA device found · device=cuda · use device="):
        select_device("cuda")


def test_another_device_is_refused() -> None:
    with pytest.raises(LorgnetteError, match="no such device · device=tpu · use auto, cpu, cuda or mps"):
        select_device("tpu")


def test_mps_is_taken_only_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto") == CPU
    assert select_device("mps") == MPS
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(LorgnetteError, match="no MPS device found · device=mps · it needs a Mac"):
        select_device("mps")


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("gpu", [("Tesla V100-SXM2-16GB", 7, 0), ("Tesla P100-PCIE-16GB", 6, 0)])
def test_a_gpu_that_is_too_old_is_refused(gpu: tuple[str, int, int], device: str, set_gpu: SetGpu) -> None:
    set_gpu(*gpu)
    name, major, minor = gpu
    message = rf"{name} is too old: its compute capability is {major}\.{minor}, not 7\.5 or more · device={device}"
    with pytest.raises(LorgnetteError, match=message):
        select_device(device)
    assert select_device("cpu") == CPU


def test_dtype_depends_on_the_device_unless_given(set_gpu: SetGpu) -> None:
    assert select_dtype("auto", CPU) == select_dtype("auto", MPS) == torch.float32
    for name in ("float32", "bfloat16", "float16"):
        assert str(select_dtype(name, CPU)) == f"torch.{name}"
    set_gpu("NVIDIA A100", 8, 0)
    assert select_device("auto") == CUDA
    assert select_dtype("auto", CUDA) == select_dtype("bfloat16", CUDA) == torch.bfloat16
    assert select_dtype("float16", CUDA) == torch.float16
    assert has_flash_attention(CUDA)


def test_a_gpu_without_bfloat16_computes_in_float16(set_gpu: SetGpu) -> None:
    set_gpu("Tesla T4", 7, 5)
    assert select_device("auto") == CUDA
    assert select_dtype("auto", CUDA) == torch.float16
    assert select_dtype("float32", CUDA) == torch.float32
    assert not has_flash_attention(CUDA)
    with pytest.raises(LorgnetteError, match=r"Tesla T4 has no bfloat16 · dtype=bfloat16 · leave dtype=auto"):
        select_dtype("bfloat16", CUDA)


def test_joined_arrays_are_split_again() -> None:
    arrays = [np.arange(length, dtype=np.int32) for length in (3, 4, 0, 1)]
    views = split_array(torch.from_numpy(join_arrays(arrays)), map(len, arrays))
    assert [view.tolist() for view in views] == [array.tolist() for array in arrays]
    assert [view.storage_offset() for view in views] == [0, 4, 8, 8]


@pytest.mark.parametrize("alignment", [1, 4])
def test_rows_are_split_into_views(alignment: int) -> None:
    sizes = [(2, 3), (5,), (1, 1, 4)]
    starts = {1: (0, 6, 11), 4: (0, 8, 16)}[alignment]
    matrix = torch.arange(60).view(3, 20).float()
    rows = list(split_each_row(matrix, sizes, alignment))
    for row, parts in zip(matrix, rows, strict=True):
        for size, start, part in zip(sizes, starts, parts, strict=True):
            assert torch.equal(part, row[start : start + math.prod(size)].view(size))
            assert part.data_ptr() == row[start:].data_ptr()


@pytest.mark.parametrize(("num_cores", "num_threads", "expected"), [(4, 4, 3), (2, 2, 1), (1, 1, 1), (16, 4, 4)])
def test_torch_leaves_a_core_to_other_threads(
    num_cores: int, num_threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 64)  # of the machine; this process may have fewer
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(num_cores)), raising=False)
    torch.set_num_threads(num_threads)
    try:
        with suppress(ValueError), leave_core_free():
            inside = torch.get_num_threads()
            raise ValueError
        assert (inside, torch.get_num_threads()) == (expected, num_threads)
    finally:
        torch.set_num_threads(before)


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


def test_workspaces_stay_while_a_graph_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replay writes to them, whoever asks for the memory: a training beside a model that answers."""
    released: list[str] = []
    monkeypatch.setattr("lorgnette.device._graphs", WeakSet())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cache"))
    clear = "_cuda_clearCublasWorkspaces"
    monkeypatch.setattr(torch._C, clear, lambda: released.append("workspaces"), raising=False)
    if not torch.backends.cuda.is_built():  # its graphs refuse to be made
        graph = {"__new__": object.__new__, "__init__": object.__init__}
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (torch.cuda.CUDAGraph,), graph))
    first, second = allocate_graph(), allocate_graph()
    del first
    release_workspaces()
    assert released == ["cache"]
    del second
    release_workspaces()
    assert released == ["cache", "workspaces", "cache"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_a_copy_on_the_host_is_equal_and_stays_so(dtype: torch.dtype) -> None:
    for shape in ((), (0,), (3, 5), (2, 1000, 1000)):
        tensor = torch.full(shape, 3, dtype=dtype)
        copied = copy_to_host(tensor.t() if tensor.dim() == 2 else tensor)
        assert (copied.dtype, copied.numel(), copied.is_contiguous()) == (dtype, tensor.numel(), True)
        tensor.zero_()
        assert bool((copied == 3).all())
    rows = torch.arange(6).view(2, 3)
    assert torch.equal(copy_to_host(rows.t()), rows.t())


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("length", [4, 5, 8, 41])
def test_a_copy_in_pieces_is_equal(length: int, is_late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "PINNED_PIECE_BYTES", 16)
    tensor = torch.arange(length, dtype=torch.float32)
    with copies_on_a_stream(is_late=is_late) as stream:
        copied = copy_to_host(tensor)
    assert torch.equal(copied, torch.arange(length, dtype=torch.float32))
    assert copied.data_ptr() != tensor.data_ptr()
    assert not stream.launched


def test_one_buffer_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second piece would be there before the first is read."""
    monkeypatch.setattr(device_module, "PINNED_PIECE_BYTES", 16)
    monkeypatch.setattr(device_module, "allocate_pinned_memory", lambda lengths, dtype: [torch.empty(4)] * 2)
    tensor = torch.arange(8, dtype=torch.float32)
    with copies_on_a_stream(is_late=False):
        assert not torch.equal(copy_to_host(tensor), tensor)


@NEEDS_CUDA
def test_a_large_copy_from_the_gpu_is_of_the_moment_of_the_call() -> None:
    torch.manual_seed(0)
    values = torch.randn(PINNED_PIECE_BYTES // 4 * 2 + 3)
    on_device = values.cuda()
    on_device.mul_(2)
    copied = copy_to_host(on_device)
    on_device.zero_()
    assert torch.equal(copied, values * 2)


def test_little_of_the_memory_is_pinned() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert may_pin(memory // 16)
    assert not may_pin(memory // 16 + 1)
