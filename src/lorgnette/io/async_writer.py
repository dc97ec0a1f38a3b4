"""Adapters and checkpoints are written on a thread, while the training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class AsyncWriter:
    """One write at a time. What goes wrong in it is raised by the next call, or at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writing")
        self._last: Future[None] | None = None

    def __call__(self, write: Callable[[], None]) -> None:
        """Begin it once the one before is done: it holds a copy of what it writes, and two would fill the memory."""
        self.wait()
        self._last = self._pool.submit(write)

    def wait(self) -> None:
        """Until all is on disk."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "AsyncWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()
