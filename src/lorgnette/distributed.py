"""The processes that train together, one for each GPU, and what they exchange.

A process is a rank of a world. Two groups connect the ranks:

    device group   NCCL on CUDA, gloo on a CPU: tensors of a step; an exchange that takes 11 minutes fails
    host group     gloo: objects, and phases of any length (images, downloads) that begin and end together

A world of one process exchanges nothing, and needs no group.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorgnette.errors import LorgnetteError
from lorgnette.rank_status import RankStatus, allocate_table

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

STEP_TIMEOUT = timedelta(minutes=11)
"""Of one exchange in the device group. A rank that hangs is ended, and named, after 10 (training/rank_process.py)."""
PHASE_TIMEOUT = timedelta(days=7)
"""Of one exchange in the host group: how long a phase takes is not known."""
TAIL = 128
"""Numbers behind the gradient, for what the ranks tell each other in its all-reduce (training/step_counts.py)."""


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    rank: from 0 to size - 1; local_rank, local_size: the same among the processes of this machine. machine: its name.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    machine: str = ""
    host_group: "ProcessGroup | None" = None
    status: RankStatus = field(default_factory=RankStatus, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """The same for one machine."""
        return self.local_rank == 0

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over all ranks. Every rank gets the same bits."""
        if self.size > 1:
            with self._exchange():
                torch.distributed.all_reduce(tensor)

    def begin_all_gather(self, whole: Tensor, part: Tensor) -> "Work":
        """Begin to write the parts of all ranks, by rank, into `whole`, after all that this rank has launched.

        After `wait()` of the result the current stream, or on a CPU the host, has them.
        """
        # The second name is that of torch before 2.13.
        gather = getattr(torch.distributed, "all_gather_single", None) or torch.distributed.all_gather_into_tensor
        work: Work = gather(whole, part, async_op=True)
        return work

    def barrier(self) -> None:
        """Wait until all ranks are here, for as long as it takes."""
        if self.size > 1:
            with self._exchange():
                torch.distributed.barrier(self.host_group)

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of every rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        with self._exchange():
            torch.distributed.all_gather_object(values, value, self.host_group)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        with self._exchange():
            torch.distributed.broadcast_object_list(values, 0, self.host_group)
        return values[0]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Says that this rank waits for the others. Raises LorgnetteError with the cause if one of them is gone."""
        try:
            with self.status.waiting():
                yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of gloo and NCCL, without a class of their own
            raise self.status.explain_broken_exchange(error) from error

    def share_progress(self, name: str, advance: Callable[[int], None]) -> Callable[[int], None]:
        """A callback for the count of things that this rank has done since the last call.

        Rank 0's calls `advance` with the count of all ranks since its last call. Waits for no rank.
        """
        if self.size == 1:
            return advance
        store, key, seen = torch.distributed.distributed_c10d._get_default_store(), f"progress of {name}", 0

        def count(amount: int) -> None:
            nonlocal seen
            self.status.report_progress()
            total = store.add(key, amount)
            if self.is_main:
                advance(total - seen)
                seen = total

        return count


def has_world(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or an agent like it, started this process as one of several."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def join_world(device_type: str, status: RankStatus | None = None) -> World:
    """Connect with the other ranks that the environment describes, as torchrun sets it. Every rank calls it once.

    device_type: `cuda` or `cpu`. On CUDA the process uses its current device. status: in a table that the ranks share;
    default: a table of its own. Raises LorgnetteError if the ranks do not find each other.
    """
    if not has_world():
        return World(machine=socket.gethostname())
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    device = torch.device("cuda", torch.cuda.current_device()) if device_type == "cuda" else None
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    status = status or RankStatus(rank, allocate_table(size))
    try:
        with status.waiting():  # a rank that is stopped now must not wait for those that connect with it
            torch.distributed.init_process_group(backend, timeout=STEP_TIMEOUT, device_id=device)
            host_group = torch.distributed.new_group(backend="gloo", timeout=PHASE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"rank {rank} on {socket.gethostname()}"
        hint = "start all processes with torchrun, or with gpus=N"
        raise LorgnetteError(f"the ranks do not find each other: {error}", where=where, hint=hint) from error
    return World(rank, size, local_rank, local_size, socket.gethostname(), host_group, status)


def allocate_flat_grad(parameters: Sequence[Tensor]) -> Tensor:
    """One vector of zeros: the `.grad` of every fp32 parameter is a view of its front, `TAIL` numbers are behind."""
    sizes = [parameter.numel() for parameter in parameters]
    flat_grad = torch.zeros(sum(sizes) + TAIL, device=parameters[0].device)
    for parameter, grad in zip(parameters, torch.split(flat_grad[:-TAIL], sizes), strict=True):
        parameter.grad = grad.view(parameter.shape)
    return flat_grad


def leave_world(world: World) -> None:
    """Disconnect. No rank may wait for this one any more."""
    if world.size > 1:
        torch.distributed.destroy_process_group()
