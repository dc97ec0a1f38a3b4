"""Writes adapters and checkpoints on a thread while training continues, and removes old ones on another."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class AsyncWriter:
    """Runs one write at a time. An error is raised by the next `submit`, by `wait`, or at the end of the block."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, "writer")  # a write and a removal
        self._pending: list[Future[None]] = []

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write once the previous one is done: each holds a copy of its data, and two could fill the memory."""
        self.wait()
        self._pending.append(self._pool.submit(write))

    def remove(self, remove: Callable[[], None]) -> None:
        """Start a removal beside the write. The system needs 0.1 s to free the memory of a file of 0.3 GB."""
        self._pending.append(self._pool.submit(remove))

    def wait(self) -> None:
        """Wait for the write and the removals. Raises the first error."""
        while self._pending:
            self._pending.pop(0).result()

    def __enter__(self) -> "AsyncWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()
