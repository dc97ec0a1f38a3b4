"""Selects device and dtype, copies tensors, measures and releases memory, captures CUDA graphs, and runs work on a
second CUDA stream."""

import gc
import math
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.types import AMPERE, TURING

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
"""Those that are alive: their kernels write to cuBLAS's workspaces."""
PINNED_PIECE_BYTES = 16 * 2**20
"""Of one piece of pinned memory for large copies. torch pins powers of two and keeps them by size, so all users take
pieces of one size. To pin one while the GPU works takes 40 to 90 ms."""
_MAX_PINNED_SHARE = 1 / 16
"""Of the machine's memory."""
_ALIGNMENT = 4
"""32-bit integers of 16 bytes: Triton compiles a kernel anew for a pointer that is no multiple of these."""


def select_device(name: str) -> torch.device:
    """auto: CUDA if there is a device.

    Raises LorgnetteError for another name, for `cuda` or `mps` without one, and for a GPU that is too old.
    """
    if name.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise LorgnetteError("no such device", where=f"device={name}", hint="use auto, cpu, cuda or mps")
    if name == "cuda" and not torch.cuda.is_available():
        raise LorgnetteError("no CUDA device found", where="device=cuda", hint="use device=auto or device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        hint = "it needs a Mac with Apple silicon; use device=auto or device=cpu"
        raise LorgnetteError("no MPS device found", where="device=mps", hint=hint)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < TURING:
        had, needed = (".".join(map(str, version)) for version in (capability, TURING))
        message = f"{get_gpu_name(device)} is too old: its compute capability is {had}, not {needed} or more"
        raise LorgnetteError(
            message, where=f"device={name}", hint="use a T4, an RTX 2060 or a newer GPU, or device=cpu"
        )
    return device


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU that computes it, float16 on another, float32 elsewhere.

    Raises LorgnetteError for `bfloat16` on a GPU without it.
    """
    if name == "auto":
        name = "float32" if device.type != "cuda" else "bfloat16" if has_bfloat16(device) else "float16"
    if name == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
        message, hint = f"{get_gpu_name(device)} has no bfloat16", "leave dtype=auto, which takes float16 there"
        raise LorgnetteError(message, where="dtype=bfloat16", hint=hint)
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Whether this GPU multiplies matrices of bfloat16."""
    return torch.cuda.get_device_capability(device) >= AMPERE


def has_flash_attention(device: torch.device) -> bool:
    """Whether torch's flash attention runs on this GPU: the same GPUs have both."""
    return has_bfloat16(device)


def copy_to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on the device; through pinned memory to CUDA, so that the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def copy_to_host(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, in memory of its own.

    NumPy takes the memory, because it asks Linux for pages of 2 MiB: to get pages of 4 KiB takes longer than the copy.
    On CUDA it waits for what the current stream has launched, not for what is launched there meanwhile.
    """
    memory = torch.from_numpy(np.empty(max(tensor.nbytes, tensor.itemsize), np.uint8))
    copy = memory.view(tensor.dtype)[: tensor.numel()].view(tensor.shape)
    if tensor.is_cuda and tensor.is_contiguous() and tensor.nbytes > PINNED_PIECE_BYTES:
        _copy_in_pieces(tensor.view(-1), copy.view(-1))
        return copy
    return copy.copy_(tensor)


def _copy_in_pieces(source: Tensor, target: Tensor) -> None:
    """From a vector on the device: it writes into one piece of pinned memory while the CPU reads another."""
    length = PINNED_PIECE_BYTES // source.itemsize
    buffers = allocate_pinned_memory([length] * 2, source.dtype)
    pieces, outs = torch.split(source, length), torch.split(target, length)
    stream = torch.cuda.Stream(source.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(source.device))
    events: list[torch.cuda.Event] = []
    with torch.cuda.stream(stream):
        for i in range(len(pieces) + 1):
            if i < len(pieces):
                buffers[i % 2][: len(pieces[i])].copy_(pieces[i], non_blocking=True)
                events.append(stream.record_event())
            if i > 0:
                events[i - 1].synchronize()
                outs[i - 1].copy_(buffers[(i - 1) % 2][: len(outs[i - 1])])


def allocate_pinned_memory(lengths: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Pinned vectors. torch keeps pinned memory that nobody uses any more, and gives it out again: pieces of at most
    PINNED_PIECE_BYTES mostly get what the reader of weights has left."""
    return [torch.empty(length, dtype=dtype, pin_memory=True) for length in lengths]


def may_pin(num_bytes: int) -> bool:
    """Whether this is little enough for the machine. torch keeps pinned memory until the end."""
    return num_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MAX_PINNED_SHARE


def join_arrays(arrays: Iterable[Int32[np.ndarray, " _"]]) -> Int32[np.ndarray, " n"]:
    """All arrays in one, each aligned for kernels; `split_array` has them again."""
    parts = [part for array in arrays for part in (array, np.zeros(-len(array) % _ALIGNMENT, np.int32))]
    return np.concatenate(parts)


def split_array(joined: Int32[Tensor, " n"], lengths: Iterable[int]) -> list[Int32[Tensor, " _"]]:
    """The arrays of `join_arrays`, by their lengths, as views."""
    views, start = [], 0
    for length in lengths:
        views.append(joined[start : start + length])
        start += length + -length % _ALIGNMENT
    return views


def split_each_row(
    matrix: Float[Tensor, "L N"], sizes: Sequence[tuple[int, ...]], alignment: int = 1
) -> Iterator[tuple[Tensor, ...]]:
    """For each row its tensors of these sizes, one after the other, as views. alignment: each begins at a multiple.

    A size is cut for all rows together: each call to torch may lose Python's lock to another thread.
    """
    columns, start = list[Sequence[Tensor]](), 0
    for size in sizes:
        length = math.prod(size)
        columns.append(matrix[:, start : start + length].view(len(matrix), *size).unbind())
        start += length + -length % alignment
    return zip(*columns, strict=True)


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """Let Python free no unreachable objects inside.

    torch ends the process if a graph's memory is freed while it captures, or allocates from another graph's memory.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def leave_core_free() -> Iterator[None]:
    """Leave one core of this process to other threads inside; torch computes on the rest, or on the only one.

    A product on all cores waits for its slowest part. If another thread needs a core, one part waits for that thread.
    """
    num_threads = torch.get_num_threads()
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(num_threads, num_cores - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def get_gpu_name(device: torch.device) -> str | None:
    """`NVIDIA H100 80GB HBM3`; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def allocate_graph() -> torch.cuda.CUDAGraph:
    """A graph to capture. While it is alive, `release_workspaces` leaves cuBLAS its workspaces."""
    graph = torch.cuda.CUDAGraph()
    _graphs.add(graph)
    return graph


@contextmanager
def capture_graph(
    stream: torch.cuda.Stream, pool: Any, allocate_workspaces: Callable[[], None]
) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture what is launched inside, on this stream, instead of running it. The result runs at every `replay`.

    pool: the handle of the memory that the graph takes. allocate_workspaces: as the function of this name, for this
    stream. Unlike torch.cuda.graph, this neither synchronizes the host nor gives back memory that torch keeps, on the
    GPU and pinned on the host; and other threads may use the device meanwhile.
    """
    graph = allocate_graph()
    with torch.cuda.stream(stream):
        allocate_workspaces()
        with pause_garbage_collection():
            graph.capture_begin(pool, "thread_local")
            try:
                yield graph
            finally:
                graph.capture_end()


def allocate_workspaces(device: torch.device, dtype: torch.dtype) -> None:
    """Let cuBLAS take its workspaces for this thread and the current stream, before a graph is captured there.

    The first product takes them, and they stay. In the memory of a graph they would keep all of it from everyone, also
    when the graph is gone.
    """
    x = torch.zeros(16, 16, dtype=dtype, device=device)
    torch.mm(x, x)
    torch.addmm(x[0], x, x)  # a bias: through cuBLASLt, which may have a workspace of its own


def release_workspaces() -> None:
    """Give back to the GPU what torch keeps for later, and cuBLAS's workspaces, of which every thread has its own.

    They stay while any graph is alive: its replay writes to them. No other thread may run products meanwhile.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    if not _graphs:
        torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def measure_available_bytes(device: torch.device) -> int:
    """What torch may reserve in all: what it has reserved, and what is free."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def measure_peak_gib(device: torch.device) -> float:
    """Peak memory so far: of tensors on the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure_reserved_gib(device: torch.device) -> float | None:
    """Peak GPU memory of torch's allocator, used or cached; None without a GPU."""
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None


class SideStream:
    """Runs one piece of work at a time, in parallel to the current stream. On a CPU it runs at once.

    A large matrix product leaves processors idle at its end, and a small one uses few of them: side by side they take
    little more time than the large ones alone.

    Kernels launched on the current stream after a piece began must not write what the piece reads, or read what it
    writes, before the next `launch` or `join`.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._running: tuple[Callable[[], None], ...] = ()

    def launch(self, *piece: Callable[[], None]) -> None:
        """Run the functions in order, after everything launched before.

        They are kept until the next piece, and their tensors with them: torch's allocator would otherwise hand out
        memory that this stream still reads.
        """
        if self._stream is not None:
            self.join()
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._running = piece
        with torch.cuda.stream(self._stream):
            for function in piece:
                function()

    def join(self) -> None:
        """Make the current stream wait for the last piece. The host does not wait."""
        if self._stream is not None and self._running:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._running = ()
