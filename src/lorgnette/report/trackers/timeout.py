"""Calls a function with a time limit.

Tracker libraries use the network when they start and finish, with retries and no limit on their sum. A finished
training must not wait for them: the call runs on a daemon thread and is abandoned at the limit. Knows nothing about
the function.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Return call(), or raise its exception; TimeoutError after `seconds`."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="lorgnette-timeout")
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no response within {seconds:g} s")
    return results[0]
