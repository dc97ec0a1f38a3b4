"""Calls a function with a time limit.

Tracker libraries use the network when they start and finish, with retries and no limit on their sum. A finished
training must not wait for them: the call runs on a daemon thread and is abandoned at the limit. Knows nothing about
the function.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Return call(), or raise its exception; TimeoutError after `seconds`."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="lorgnette-timeout").start()
    if not wait([future], seconds).done:
        raise TimeoutError(f"no response within {seconds:g} s")
    return future.result()
