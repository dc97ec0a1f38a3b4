"""The processes of a run, as its command sees them: this one alone, those that it will fork, or those of torchrun.

Each rank of torchrun runs the whole command. The first alone speaks, opens the run's folder and writes; the others
learn from it which folder that is. All compare what they have read before they train.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.rank_status import get_exit_status
from lorgnette.report.console import Terminal
from lorgnette.report.run_dir import RunDir
from lorgnette.training.launch import NumGpus, count_ranks, is_rank, redirect_output, select_card, start_ranks

if TYPE_CHECKING:
    from lorgnette.distributed import World

GUIDE = "docs/guides/many-gpus.md"


@dataclass(frozen=True)
class Ranks:
    """num_to_start: processes to fork; 1: none. world: of torchrun's ranks, of which this is one."""

    num_to_start: int = 1
    world: "World | None" = None

    @property
    def is_main(self) -> bool:
        """Whether this process opens the run's folder and writes into it."""
        return self.world is None or self.world.is_main

    def broadcast(self, value: Any) -> Any:
        """The first rank's value."""
        return value if self.world is None else self.world.broadcast_object(value)

    def check_same(self, inputs: Mapping[str, str]) -> None:
        """Raise LorgnetteError, on every rank, that names the ranks whose inputs differ from the first rank's.

        inputs: what it is → a text or a hash that says which.
        """
        if self.world is None:
            return
        digests = {name: hashlib.sha256(value.encode()).hexdigest() for name, value in inputs.items()}
        found = self.world.gather_objects((self.world.machine, digests))
        for rank, (machine, digest) in enumerate(found):
            if others := [name for name, value in digest.items() if value != found[0][1][name]]:
                message = f"rank {rank} on {machine} has other {' and '.join(others)} than rank 0 on {found[0][0]}"
                hint = "give all machines the same files, and the same command"
                raise LorgnetteError(message, where="torchrun", hint=hint)

    @contextmanager
    def open_run(self, opened: AbstractContextManager[RunDir]) -> Iterator[RunDir]:
        """The run's folder, which the first rank opens and locks. It knows how many processes will be forked."""
        if self.world is None or self.world.is_main:
            with opened as run_dir:
                self.broadcast(run_dir.path.resolve())
                yield replace(run_dir, gpus=self.num_to_start)
        else:
            yield RunDir(self.world.broadcast_object(None))

    def run(self, device: str, run_dir: RunDir, train: Callable[["World", RunDir], None]) -> None:
        """Call `train(world, run_dir)` in every rank."""
        if self.num_to_start > 1:
            with run_dir.share_lock() as shared:
                start_ranks(self.num_to_start, device, run_dir.ranks, lambda world: train(world, shared))
            return
        from lorgnette.distributed import World

        world = World() if self.world is None else self.world
        with redirect_output(None if world.is_main else run_dir.ranks / f"rank-{world.rank}.log"):
            train(world, run_dir)


@contextmanager
def open_ranks(gpus: NumGpus, device: str, terminal: Terminal) -> Iterator[Ranks]:
    """The processes of the command; in torchrun's the block is watched.

    gpus, device: as the user gave them. Raises UsageError for more GPUs than there are, and for fewer machines than
    SLURM has given.
    """
    num_to_start = count_ranks(gpus, device)
    if is_rank():
        with _join_torchrun(device, terminal) as world:
            yield Ranks(1, world)
        return
    tasks, machines = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")), _count_given_machines()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, with one process
        _check_machines(1)
    elif tasks > 1:
        terminal.warn(f"SLURM has started {tasks} tasks, and each trains alone; for one training see {GUIDE}")
    elif machines > 1:
        terminal.warn(f"SLURM has given {machines} machines, and this training uses one; for all see {GUIDE}")
    if num_to_start > 1:
        terminal.print(f"ranks      {_describe(num_to_start, 1, device)}")
    yield Ranks(num_to_start)


@contextmanager
def _join_torchrun(device: str, terminal: Terminal) -> Iterator["World"]:
    from torch.distributed.distributed_c10d import _get_default_store

    from lorgnette.distributed import join_world, leave_world
    from lorgnette.training.rank_process import end_with_parent, watch_ranks

    end_with_parent()
    is_cuda = device != "cpu" and _has_gpu_for_each(device)
    if is_cuda:
        select_card()
    world = join_world("cuda" if is_cuda else "cpu")
    try:
        with watch_ranks(world.status, terminal.warn, _get_default_store()):
            num_machines = int(os.environ.get("GROUP_WORLD_SIZE") or world.size // world.local_size)
            _check_machines(num_machines)
            terminal.print(f"ranks      {_describe(world.size, num_machines, 'cuda' if is_cuda else 'cpu')}")
            with world.status.phase("data", is_bounded=False):  # the first rank may hash images for long
                yield world
            leave_world(world)
    except (LorgnetteError, OSError) as error:
        if world.is_main:
            raise
        raise SystemExit(get_exit_status(error)) from error  # the first rank says it


def _has_gpu_for_each(device: str) -> bool:
    """Whether this machine has GPUs. Raises LorgnetteError, in all its ranks, if they are too few."""
    import torch

    found, needed = torch.cuda.device_count(), int(os.environ["LOCAL_WORLD_SIZE"])
    if found < needed and (found or device == "cuda"):
        message = f"torchrun has started {needed} processes on {socket.gethostname()}, which shows {found} GPUs"
        hint = f"start torchrun with --nproc-per-node={found}" if found else "use device=cpu"
        raise LorgnetteError(message, where=f"device={device}", hint=hint)
    return found > 0


def _count_given_machines() -> int:
    """How many SLURM has given to this step or job."""
    return int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)


def _check_machines(number: int) -> None:
    """Raise UsageError if SLURM has given more machines than take part: each would train alone."""
    if (given := _count_given_machines()) > number:
        message = f"SLURM has given {given} machines, and torchrun's world has {number}"
        hint = f"start one torchrun on each with srun, and one --rdzv-endpoint for all: {GUIDE}"
        raise UsageError(message, where="SLURM_NNODES", hint=hint)


def _describe(num_ranks: int, num_machines: int, device: str) -> str:
    what = "processes on the CPU" if device == "cpu" else "GPUs"
    return f"{num_ranks} {what} on {num_machines} machine{'s' if num_machines > 1 else ''}"
