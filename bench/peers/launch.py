"""Measures how fast this host launches kernels. Machines of one kind differ by half, and one from hour to hour; a step
of thousands of small kernels takes as long as their launches."""

import time

import torch

NUM_LAUNCHES = 1000


def measure_launch_us() -> float | None:
    """Microseconds per launch of a kernel that adds one to one number, from Python: the mean of 1,000 in a row. None
    without a GPU."""
    if not torch.cuda.is_available():
        return None
    number = torch.zeros(1, device="cuda")
    for _ in range(100):
        number.add_(1)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(NUM_LAUNCHES):
        number.add_(1)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e6 / NUM_LAUNCHES
