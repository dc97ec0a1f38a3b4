"""Lines and progress bars on the terminal. Knows nothing about the work they report."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Protocol, TextIO, cast

import typer
from rich.console import Console
from rich.text import Text

from lorgnette.io.shell import escape_controls
from lorgnette.io.standard_streams import RemarkStream
from lorgnette.report.notebook_progress import FIRST_SECONDS, UPDATE_SECONDS, NotebookProgress


class ProgressCallback(Protocol):
    """(items done since the last call, a note shown beside the bar)"""

    def __call__(self, count: int, note: str = "") -> None: ...


TransferCallback = Callable[[int, int], None]
"""(files and bytes received since the last call)"""


class Terminal:
    """Prints results, what the user asked for, to standard output and remarks to standard error.

    console: takes both instead. In a notebook both go to the output of the cell. Of several processes that train
    together only the first prints.
    """

    def __init__(self, console: Console | None = None) -> None:
        if console is None and is_silent_rank():
            console = Console(file=cast(TextIO, RemarkStream(None)))
        self._is_notebook = console is None and is_notebook()
        if self._is_notebook:  # one stream, without rich's HTML for each line
            console = Console(force_jupyter=False, force_terminal=True, color_system="standard")
        self._console = console or Console(file=cast(TextIO, RemarkStream(sys.stderr)))
        self._results = console or Console()

    @property
    def width(self) -> int:
        """Columns of what the results are printed to."""
        return self._results.width

    def warn(self, text: str) -> None:
        self.print(text, style="yellow")

    def error(self, text: str) -> None:
        self.print(text, style="red")

    def print(self, text: str, *, style: str = "") -> None:
        """Print literally: a path or a caption may contain what looks like markup or an :emoji:, or controls the
        terminal."""
        self._console.print(Text(escape_controls(text), style), highlight=False, soft_wrap=True)

    def print_result(self, text: str, *, style: str = "") -> None:
        """Print literally what the user asked for. Raises LorgnetteError where standard output cannot be written."""
        self._results.print(Text(escape_controls(text), style), highlight=False, soft_wrap=True)

    @contextmanager
    def show_progress(self, label: str, total: int, *, completed: int = 0) -> Iterator[ProgressCallback]:
        """Show a progress bar with the time left; nothing if the output is neither a terminal nor a notebook."""
        if self._is_notebook:
            with closing(NotebookProgress(escape_controls(label), total, completed)) as line:
                yield line.advance
            return
        if not self._console.is_terminal:
            yield lambda count, note="": None
            return
        from rich import progress as rich

        columns = (
            rich.TextColumn("{task.description:<10}"), rich.BarColumn(bar_width=28), rich.MofNCompleteColumn(),
            rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        with rich.Progress(*columns, console=self._console) as progress:
            task = progress.add_task(escape_controls(label), total=total, completed=completed, note="")

            def advance(count: int, note: str = "") -> None:
                progress.update(task, advance=count, note=escape_controls(note))

            yield advance

    @contextmanager
    def show_count(self, label: str, total: int | None = None) -> Iterator[ProgressCallback]:
        """As `show_progress`, for work that starts processes: no thread is started. total: None if unknown.

        Work of less than a second shows nothing; when it is done, nothing is shown any more.
        """
        if self._is_notebook or not self._console.is_terminal:
            with self.show_progress(label, total or 0) as advance:
                yield advance
            return
        from rich import progress as rich

        counts = [rich.TextColumn("{task.completed:,.0f}")]
        bar = [rich.BarColumn(bar_width=28), rich.MofNCompleteColumn()]
        progress = rich.Progress(
            rich.TextColumn("{task.description:<10}"), *(counts if total is None else bar), rich.TimeElapsedColumn(),
            rich.TextColumn("{task.fields[note]}", markup=False),
            console=self._console, auto_refresh=False, transient=True,
        )  # fmt: skip
        task = progress.add_task(escape_controls(label), total=total, note="")
        shown = time.monotonic() + FIRST_SECONDS - UPDATE_SECONDS

        def advance_and_show(count: int, note: str = "") -> None:
            nonlocal shown
            progress.update(task, advance=count, note=escape_controls(note))
            if time.monotonic() - shown >= UPDATE_SECONDS:
                progress.start()
                progress.refresh()
                shown = time.monotonic()

        try:
            yield advance_and_show
        finally:
            if progress.live.is_started:
                progress.stop()

    @contextmanager
    def show_time(self, label: str) -> Iterator[None]:
        """Show how long work of unknown length takes; nothing if the output is no terminal."""
        if self._is_notebook or not self._console.is_terminal:
            yield
            return
        from rich import progress as rich

        columns = (rich.SpinnerColumn(), rich.TextColumn("{task.description:<10}"), rich.TimeElapsedColumn())
        with rich.Progress(*columns, console=self._console, transient=True) as progress:
            progress.add_task(escape_controls(label), total=None)
            yield

    @contextmanager
    def show_transfer(self, label: str) -> Iterator[TransferCallback]:
        """Show files and bytes as they are received; nothing if the output is neither a terminal nor a notebook."""
        if self._is_notebook:
            num_bytes = 0
            with closing(NotebookProgress(escape_controls(label))) as line:

                def count(more_files: int, more_bytes: int) -> None:
                    nonlocal num_bytes
                    num_bytes += more_bytes
                    line.advance(more_files, f"{num_bytes / 1e6:.1f} MB")

                yield count
            return
        if not self._console.is_terminal:
            yield lambda more_files, more_bytes: None
            return
        from rich import progress as rich

        columns = (
            rich.SpinnerColumn(), rich.TextColumn("{task.description:<10}"),
            rich.TextColumn("{task.fields[files]} files"), rich.DownloadColumn(), rich.TransferSpeedColumn(),
            rich.TimeElapsedColumn(),
        )  # fmt: skip
        with rich.Progress(*columns, console=self._console) as progress:
            task = progress.add_task(escape_controls(label), total=None, files=0)

            def advance(more_files: int, more_bytes: int) -> None:
                files = progress.tasks[0].fields["files"] + more_files
                progress.update(task, advance=more_bytes, files=files)

            yield advance


def is_silent_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several processes of torchrun, and not the first."""
    return int(environment.get("WORLD_SIZE", "1")) > 1 and int(environment.get("RANK", "0")) > 0


def is_notebook() -> bool:
    """Whether this is a kernel of Jupyter, Colab or Kaggle."""
    return "IPython" in sys.modules and Console(file=io.StringIO()).is_jupyter


def print_result(text: str, *, ends_line: bool = True) -> None:
    """Print what the user asked for, to standard output. JSON stays JSON."""
    typer.echo(escape_controls(text), nl=ends_line)
