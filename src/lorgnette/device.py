"""Selects device and dtype, copies arrays to the device, measures memory, and runs work on a second CUDA stream."""

import resource
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lorgnette.errors import LorgnetteError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def select_device(name: str) -> torch.device:
    """auto: CUDA if there is a device. Raises LorgnetteError for `cuda` without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise LorgnetteError("no CUDA device found", where="device=cuda", hint="use device=auto or device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on CUDA, else float32."""
    return DTYPES["bfloat16" if device.type == "cuda" else "float32"] if name == "auto" else DTYPES[name]


def copy_to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor on the device; through pinned memory to CUDA, so that the host does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def get_gpu_name(device: torch.device) -> str | None:
    """`NVIDIA H100 80GB HBM3`; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def measure_peak_gib(device: torch.device) -> float:
    """Peak memory so far: of tensors on the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


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
