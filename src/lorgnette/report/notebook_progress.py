"""Progress in a notebook: one line of text that changes in its place, also in Colab and Kaggle.

rich's bars need ipywidgets there, and print nothing without. Knows nothing about the work it reports.
"""

import importlib
import time
from typing import Any

_BAR_WIDTH = 24
FIRST_SECONDS, UPDATE_SECONDS = 1.0, 0.5
"""Work that is done sooner shows nothing; the line changes no more often."""


class NotebookProgress:
    """The line of one piece of work. total: 0 if unknown."""

    def __init__(self, label: str, total: int = 0, completed: int = 0) -> None:
        self._label, self._total, self._first = label, total, completed
        self._count, self._note = completed, ""
        self._started = self._shown = time.monotonic()
        self._handle: Any = None

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more items. note: shown behind them."""
        self._count, self._note = self._count + count, note
        now = time.monotonic()
        if now - self._shown >= (FIRST_SECONDS if self._handle is None else UPDATE_SECONDS):
            self._shown = now
            self._show()

    def close(self) -> None:
        """Show the end, if the line is shown."""
        if self._handle is not None:
            self._show()

    def _show(self) -> None:
        content = {"text/plain": self.format(time.monotonic() - self._started)}
        if self._handle is None:
            display = importlib.import_module("IPython.display").display
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def format(self, seconds: float) -> str:
        """The line after `seconds`."""
        parts = [f"{self._label:<10}"]
        if self._total:
            num_full = _BAR_WIDTH * min(self._count, self._total) // self._total
            parts.append(f"{'█' * num_full}{'░' * (_BAR_WIDTH - num_full)} {self._count}/{self._total}")
        else:
            parts.append(str(self._count))
        parts.append(_format_time(seconds))
        num_done = self._count - self._first
        if 0 < num_done < self._total - self._first:
            parts.append(f"left {_format_time(seconds / num_done * (self._total - self._count))}")
        return " ".join([*parts, self._note]).rstrip()


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
