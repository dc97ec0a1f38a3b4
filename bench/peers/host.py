"""How fast this host puts work before its GPU. Machines of one kind differ by half in it, and one from hour to hour; a
step of thousands of small kernels takes as long as launching them does.
"""

import time

import torch

LAUNCHES = 1000


def launch_us() -> float | None:
    """Microseconds a launch of a kernel that adds one to one number, from Python: the mean of 1,000, one behind the
    other. None without a GPU."""
    if not torch.cuda.is_available():
        return None
    one = torch.zeros(1, device="cuda")
    for _ in range(100):
        one.add_(1)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(LAUNCHES):
        one.add_(1)
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e6 / LAUNCHES
