"""Writes run on a thread, in order, one at a time; errors reach the caller."""

from threading import Event

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.io.async_writer import AsyncWriter


def test_one_write_at_a_time_while_the_caller_continues() -> None:
    done: list[str] = []
    free = Event()

    def slow() -> None:
        assert free.wait(20)
        done.append("first")

    with AsyncWriter() as writer:
        writer.submit(slow)
        assert not done, "the caller did not wait"
        free.set()
        writer.submit(lambda: done.append("second"))
        assert done[0] == "first"
    assert done == ["first", "second"]


def test_a_removal_runs_beside_the_write() -> None:
    done: list[str] = []
    free, gone = Event(), Event()

    def write() -> None:
        assert gone.wait(20), "the write is before the removal"
        done.append("written")

    def remove() -> None:
        assert free.wait(20)
        done.append("removed")
        gone.set()

    with AsyncWriter() as writer:
        writer.submit(write)
        writer.remove(remove)
        assert not done, "the caller did not wait"
        free.set()
        writer.wait()
        assert done == ["removed", "written"]


def test_an_error_of_a_removal_is_raised_at_the_end() -> None:
    with pytest.raises(LorgnetteError, match="No space left"), AsyncWriter() as writer:
        writer.remove(fail)


def fail() -> None:
    raise LorgnetteError("cannot write: No space left on device")


def test_an_error_is_raised_once_by_the_next_submit() -> None:
    with AsyncWriter() as writer:
        writer.submit(fail)
        with pytest.raises(LorgnetteError, match="No space left"):
            writer.submit(fail)
        writer.wait()


def test_an_error_of_the_last_write_is_raised_at_the_end() -> None:
    with pytest.raises(LorgnetteError, match="No space left"), AsyncWriter() as writer:
        writer.submit(fail)


def test_another_error_is_not_replaced() -> None:
    def interrupt(writer: AsyncWriter) -> None:
        with writer:
            writer.submit(fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt(AsyncWriter())
