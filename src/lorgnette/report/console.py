"""What a person sees while it works: one line a fact, a bar for whatever takes long.

Knows nothing about what is being done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.text import Text


class ProgressCallback(Protocol):
    """(how many more are done, a word beside the bar)"""

    def __call__(self, more: int, beside: str = "") -> None: ...


TransferCallback = Callable[[int, int], None]
"""(how many more files, how many more bytes)"""


class Terminal:
    """Lines and bars on a console (standard error, so that answers can be piped)."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)

    def print(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(text, style="yellow")

    def error(self, text: str) -> None:
        self._print(text, style="red")

    def _print(self, text: str, style: str = "") -> None:
        """As it is: what looks like markup or an :emoji: in a path or a caption is text."""
        self._console.print(Text(text, style), highlight=False, soft_wrap=True)

    @contextmanager
    def show_progress(self, label: str, total: int, *, completed: int = 0) -> Iterator[ProgressCallback]:
        """A bar with the time left; without a terminal to draw on, nothing: the lines said meanwhile have to do."""
        if not self._console.is_terminal:
            yield _ignore_progress
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<10}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[beside]}", markup=False),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(label, total=total, completed=completed, beside="")

            def advance(more: int, beside: str = "") -> None:
                progress.update(task, advance=more, beside=beside)

            yield advance

    @contextmanager
    def show_transfer(self, label: str) -> Iterator[TransferCallback]:
        """Files and bytes as they come in."""
        if not self._console.is_terminal:
            yield _ignore_transfer
            return
        from rich.progress import (
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TransferSpeedColumn,
        )

        columns = (
            SpinnerColumn(), TextColumn("{task.description:<10}"), TextColumn("{task.fields[files]} files"),
            DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(label, total=None, files=0)
            files = 0

            def came(more: int, size: int) -> None:
                nonlocal files
                files += more
                progress.update(task, advance=size, files=files)

            yield came


def _ignore_transfer(more: int, size: int) -> None: ...


def _ignore_progress(more: int, beside: str = "") -> None: ...
