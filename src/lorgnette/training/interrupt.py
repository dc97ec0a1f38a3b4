"""Ctrl-C during a training."""

import signal
from types import FrameType

from lorgnette.report.console import Terminal


class GracefulInterrupt:
    """The first Ctrl-C finishes the step and saves, the second stops at once."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.is_requested = False

    def __enter__(self) -> "GracefulInterrupt":
        self._previous_handler = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous_handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True
        self._terminal.warn("stopping after this step; press Ctrl-C again to stop at once without saving")
