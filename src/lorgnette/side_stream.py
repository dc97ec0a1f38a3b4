"""Overlaps LoRA weight-gradient kernels with the input-gradient chain on a second CUDA stream.

A large matrix product leaves processors idle at its end, and a small one uses few of them. Side by side they take
little more time than the large ones alone.
"""

from collections.abc import Callable

import torch


class SideStream:
    """Runs one piece of work at a time, in parallel to the current stream. On a CPU it runs at once.

    Kernels launched on the current stream after a piece began must not write what the piece reads, or read what it
    writes, before the next `launch` or `join`.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._running: tuple[Callable[[], None], ...] = ()

    def launch(self, *piece: Callable[[], None]) -> None:
        """Run the functions in order, after everything launched before.

        They are kept until the next piece, and their tensors with them: torch's allocator would otherwise hand out
        memory that this stream still reads.
        """
        if self._stream is not None:
            self.join()
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            self._running = piece
        with torch.cuda.stream(self._stream):
            for function in piece:
                function()

    def join(self) -> None:
        """Make the current stream wait for the last piece. The host does not wait."""
        if self._stream is not None and self._running:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._running = ()
