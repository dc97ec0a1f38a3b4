"""Writes adapters and checkpoints on a thread while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class AsyncWriter:
    """Runs one write at a time. An error is raised by the next `submit`, by `wait`, or at the end of the block."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._pending: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write once the previous one is done: each holds a copy of its data, and two could fill the memory."""
        self.wait()
        self._pending = self._pool.submit(write)

    def wait(self) -> None:
        """Return when everything is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "AsyncWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self.wait()
