"""Where a model is computed, and in which numbers."""

import resource

import numpy as np
import torch
from torch import Tensor

from lorgnette.errors import LorgnetteError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def select_device(name: str) -> torch.device:
    """`auto`: CUDA where there is one. Raises LorgnetteError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise LorgnetteError("no CUDA device is to be seen", where="device=cuda", hint="use device=auto or device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def select_dtype(name: str, device: torch.device) -> torch.dtype:
    return DTYPES["bfloat16" if device.type == "cuda" else "float32"] if name == "auto" else DTYPES[name]


def copy_to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """To the device; to CUDA by way of pinned memory, so that the host need not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def measure_peak_gib(device: torch.device) -> float:
    """The most memory used so far: what tensors took of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def measure_reserved_gib(device: torch.device) -> float | None:
    """The most that torch's allocator has held of the GPU, in use or kept for later; None without a GPU."""
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else None
