"""Copies that do not wait, on a CPU: made at once, or as late as a GPU may make them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

_empty, _copy = torch.empty, Tensor.copy_


class Stream:
    """All streams in one. launched: copies that nobody has waited for."""

    def __init__(self, *, is_late: bool) -> None:
        self.is_late, self.launched = is_late, list[Callable[[], object]]()

    def copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if not (non_blocking and self.is_late):
            return _copy(target, source)
        self.launched.append(lambda: _copy(target, source))
        return target

    def wait_stream(self, stream: "Stream") -> None: ...

    def record_event(self) -> "Event":
        return Event(self, list(self.launched))


class Event:
    def __init__(self, stream: Stream, launched: list[Callable[[], object]]) -> None:
        self._stream, self._launched = stream, launched

    def synchronize(self) -> None:
        for copy in self._launched:
            if copy in self._stream.launched:
                self._stream.launched.remove(copy)
                copy()


@contextmanager
def copies_on_a_stream(*, is_late: bool) -> Iterator[Stream]:
    """Let tensors on the CPU take the ways of CUDA. is_late: a copy is made when the host waits for it, not before."""
    stream = Stream(is_late=is_late)

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return _empty(*size, **options)

    def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        return stream.copy(target, source, non_blocking)

    with (
        patch.object(Tensor, "is_cuda", True, create=True),
        patch.object(Tensor, "copy_", copy_),
        patch.object(torch, "empty", empty),
        patch.object(torch.cuda, "Stream", lambda *_: stream),
        patch.object(torch.cuda, "current_stream", lambda *_: stream),
        patch.object(torch.cuda, "stream", lambda *_: nullcontext()),
    ):
        yield stream
