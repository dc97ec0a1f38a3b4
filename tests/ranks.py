"""Runs a function in several processes that train together, over gloo on loopback, or on GPUs over NCCL."""

import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch

from lorgnette.distributed import World, join_world, leave_world
from lorgnette.training.launch import select_card

SECONDS = 60.0
"""For all ranks together; a test that hangs fails."""
_USED_BEFORE = "Cannot re-initialize CUDA in forked subprocess"


def run_ranks(
    function: Callable[..., Any], size: int, *args: Any, seconds: float = SECONDS, device_type: str = "cpu"
) -> list[Any]:
    """`function(world, *args)` in `size` forked processes; their results, which can be pickled, by rank.

    device_type: with `cuda` each sees a GPU of its own, and tensors on it are exchanged over NCCL. Raises an
    AssertionError with the traceback of a rank that fails, or if the ranks take longer than `seconds`. No process is
    left.
    """
    context, port = multiprocessing.get_context("fork"), _find_free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    processes = [
        context.Process(
            target=_run_rank, args=(function, args, rank, size, port, device_type, pipes[rank][1]), daemon=True
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    results, end = dict[int, Any](), time.time() + seconds
    readers: dict[Any, int] = {reader: rank for rank, (reader, _) in enumerate(pipes)}
    for _, writer in pipes:
        writer.close()
    try:
        while len(results) < size:
            ready = wait(list(readers), max(0.0, end - time.time()))
            assert ready, f"ranks {sorted(set(range(size)) - set(results))} are not done after {seconds} s"
            reader: Any
            for reader in ready:
                rank = readers.pop(reader)
                try:
                    is_done, value = reader.recv()
                except EOFError:
                    processes[rank].join(5)
                    raise AssertionError(f"rank {rank} ended with exit code {processes[rank].exitcode}") from None
                if not is_done and _USED_BEFORE in value:
                    pytest.skip("this process has asked for CUDA before, so a forked one cannot use it any more")
                assert is_done, f"rank {rank}:\n{value}"
                results[rank] = value
    finally:
        for process in processes:
            process.join(2)
            process.kill()
            process.join()
    return [results[rank] for rank in range(size)]


def _run_rank(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    size: int,
    port: int,
    device_type: str,
    writer: Connection,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    if device_type == "cuda":
        select_card()
    os.chdir(tempfile.mkdtemp(prefix=f"rank-{rank}-"))
    try:
        world = join_world(device_type) if size > 1 else World()
        result = True, function(world, *args)
        leave_world(world)
    except BaseException:
        result = False, traceback.format_exc()
    writer.send(result)
    writer.close()
    os._exit(0)  # pytest's own exit handlers belong to the parent


def _find_free_port() -> int:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
