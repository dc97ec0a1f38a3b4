"""Remarks that cannot be written are dropped; a result that cannot be written is an error."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.io.standard_streams import RemarkStream, ResultStream, guard_standard_streams


def open_full(_: Path) -> TextIO:
    return open("/dev/full", "w", buffering=1)


def open_abandoned_pipe(_: Path) -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


def open_for_reading(path: Path) -> TextIO:
    """As a descriptor that was closed at the start."""
    (path / "file").touch()
    return open(os.open(path / "file", os.O_RDONLY), "w", buffering=1)


BROKEN = [
    pytest.param(
        open_full, "No space left on device", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
    ),
    (open_abandoned_pipe, "Broken pipe"),
    (open_for_reading, "Bad file descriptor"),
]


@pytest.mark.parametrize(("open_broken", "reason"), BROKEN)
def test_remarks_that_cannot_be_written_are_dropped(
    open_broken: Callable[[Path], TextIO], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = open_broken(tmp_path)
    with pytest.raises(OSError, match=reason):
        broken.write("a remark\n")
    monkeypatch.setattr(sys, "stderr", broken)
    with guard_standard_streams():
        for _ in range(3000):
            sys.stderr.write("a remark\n")
            sys.stderr.flush()
        assert not sys.stderr.isatty()
        assert sys.stderr.fileno() == broken.fileno()
    broken.close()  # Python's exit does it: nothing is left that could fail


@pytest.mark.parametrize(("open_broken", "reason"), BROKEN)
def test_a_result_that_cannot_be_written_is_an_error(
    open_broken: Callable[[Path], TextIO], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = open_broken(tmp_path)
    monkeypatch.setattr(sys, "stdout", broken)
    with guard_standard_streams():
        sys.stdout.write("an answer")
        with pytest.raises(LorgnetteError, match=f"cannot be written: {reason} · standard output"):
            sys.stdout.flush()
    broken.close()


def test_what_can_be_written_is() -> None:
    stream = io.StringIO()
    result = ResultStream(stream)
    assert result.write("an ") == 3
    RemarkStream(stream).write("answer")
    result.flush()
    assert stream.getvalue() == "an answer"
    stream.close()
    remarks = RemarkStream(stream)
    assert remarks.write("dropped") == 7
    remarks.flush()
    assert not remarks.isatty()
    assert RemarkStream(None).write("dropped") == 7


def test_a_closed_descriptor_is_not_given_to_the_next_file(tmp_path: Path) -> None:
    """Else what a library prints goes into a checkpoint. In a child, for its descriptors."""
    child = os.fork()
    if not child:
        status = 1
        try:
            for descriptor in (1, 2):
                os.close(descriptor)
            sys.stdout = sys.stderr = None  # as Python leaves them
            with guard_standard_streams():
                assert os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY) > 2
                sys.stderr.write("dropped\n")
                os.write(2, b"dropped")
                with pytest.raises(LorgnetteError, match="Bad file descriptor"):
                    sys.stdout.write("an answer" * 10_000)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_the_streams_are_restored_and_escape_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    before = sys.stdout, sys.stderr
    with guard_standard_streams():
        sys.stdout.write("é")
    assert (sys.stdout, sys.stderr) == before
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9"  # type: ignore[attr-defined]
