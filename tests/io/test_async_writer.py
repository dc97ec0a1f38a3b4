"""What is written on a thread: in order, whole before the next begins, and what goes wrong is heard of."""

from threading import Event

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.io.async_writer import AsyncWriter


def test_one_write_at_a_time_while_the_caller_goes_on() -> None:
    done: list[str] = []
    free = Event()

    def slow() -> None:
        assert free.wait(20)
        done.append("first")

    with AsyncWriter() as writing:
        writing(slow)
        assert not done, "the caller did not wait"
        free.set()
        writing(lambda: done.append("second"))
        assert done[0] == "first"
    assert done == ["first", "second"]


def full() -> None:
    raise LorgnetteError("cannot write: No space left on device")


def test_what_goes_wrong_is_raised_by_the_next_call_and_once() -> None:
    with AsyncWriter() as writing:
        writing(full)
        with pytest.raises(LorgnetteError, match="No space left"):
            writing(full)
        writing.wait()


def test_what_goes_wrong_in_the_last_is_raised_at_the_end() -> None:
    with pytest.raises(LorgnetteError, match="No space left"), AsyncWriter() as writing:
        writing(full)


def test_an_error_beside_it_is_not_covered_up() -> None:
    def stopped(writing: AsyncWriter) -> None:
        with writing:
            writing(full)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped(AsyncWriter())
