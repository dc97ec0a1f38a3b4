"""A call that gets so long and no longer.

Tracker libraries talk to the network when they start and end, with retries of their own and no way to cap the sum.
A training that has finished must not wait on them, so such a call runs in a daemon thread that is left behind when
its time is up. Knows nothing about what is called.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """call(), or TimeoutError after so many seconds. Its own exception is raised here."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="lorgnette-deadline")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]
