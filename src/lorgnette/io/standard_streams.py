"""Standard output and standard error that may be closed, full, or a pipe that nobody reads any more.

What the user asked for goes to standard output: a command that cannot write it fails. Progress and remarks go to
standard error: what cannot be written there is dropped, and the work goes on.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from lorgnette.errors import LorgnetteError

_WRITE_ERRORS = (OSError, ValueError, RuntimeError)
"""Of a stream: the system's; "closed file"; "reentrant call", if a signal's handler writes during a write."""


class RemarkStream:
    """A text stream, such as standard error, that drops what cannot be written. None drops everything."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if self._stream is not None:
            with suppress(*_WRITE_ERRORS):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(*_WRITE_ERRORS):
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ResultStream:
    """A text stream, such as standard output, that raises LorgnetteError if it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._explain_os_errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._explain_os_errors():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _explain_os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _discard_rest(self._stream)
            message, hint = (
                f"the result cannot be written: {error.strerror or error}",
                "not all of it is there; try again",
            )
            raise LorgnetteError(message, where="standard output", hint=hint) from error


@contextmanager
def guard_standard_streams() -> Iterator[None]:
    """Make sys.stdout a ResultStream and sys.stderr a RemarkStream until the block ends."""
    _open_closed_descriptors()
    before = stdout, stderr = sys.stdout, sys.stderr
    # Escape characters that the terminal's encoding lacks, instead of failing.
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # of what was written before: the next write has it too
                stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = cast(TextIO, ResultStream(stdout)), cast(TextIO, RemarkStream(stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        try:
            stderr.flush()
        except OSError:
            _discard_rest(stderr)


def _open_closed_descriptors() -> None:
    """Give a descriptor that is closed (`2>&-`) to the null device.

    Otherwise the next file that is opened gets its number, and what a library prints would go into that file. Standard
    output is opened for reading: a result that is written to it still fails.
    """
    for descriptor, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free number, which is this one
    # Python leaves None for a descriptor that was closed.
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _discard_rest(stream: TextIO) -> None:
    """Let what is still in the stream's buffer go nowhere: Python writes it at its exit, and fails with status 120."""
    with suppress(*_WRITE_ERRORS):
        descriptor, null = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
