"""Work beside the work: on CUDA a second stream for what the first does not wait for.

Large products leave processors idle at their end, and small ones use few of them: side by side they take little more
than the large ones alone.
"""

from collections.abc import Callable

import torch


class SideStream:
    """One piece of work at a time. What is launched after a piece began must not write what the piece reads, or read
    what it writes, before the next piece or `join`. On a CPU a piece is done at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._running: tuple[Callable[[], None], ...] = ()

    def launch(self, *piece: Callable[[], None]) -> None:
        """Launch the piece, its parts in order, behind all that was launched before.

        Its tensors are kept until the next one: memory that is given back sooner would be handed out while it is read.
        """
        if self._stream is not None:
            self.join()
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._running = piece
        with torch.cuda.stream(self._stream):
            for part in piece:
                part()

    def join(self) -> None:
        """What is launched from now on finds the last piece done."""
        if self._stream is not None and self._running:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._running = ()
