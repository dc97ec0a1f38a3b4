"""Callbacks of the user: which are taken, when one stops the training, and what an exception leaves."""

from typing import Any

import numpy as np
import pytest

from lorgnette.errors import UsageError
from lorgnette.training.user_callbacks import UserCallbacks


class Recorder:
    """Records its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_step_end(self, step: int, loss: float) -> None:
        self.calls.append((step, loss))

    def on_evaluate(self, step: int, scores: dict[str, float]) -> None:
        self.calls.append((step, scores))


def test_functions_and_objects_are_called() -> None:
    recorder, steps = Recorder(), list[int]()
    callbacks = UserCallbacks([recorder, lambda step, loss: steps.append(step)])
    callbacks.call("on_step_end", 1, 0.5)
    callbacks.call("on_log", object())
    callbacks.call("on_evaluate", 1, {"eval_loss": 2.0})
    assert recorder.calls == [(1, 0.5), (1, {"eval_loss": 2.0})]
    assert steps == [1]
    assert not callbacks.is_stopping
    UserCallbacks(recorder).call("on_step_end", 2, 0.5)  # one alone
    assert recorder.calls[-1] == (2, 0.5)


@pytest.mark.parametrize(("result", "is_stopping"), [(True, True), (np.bool_(True), True), (None, False), (3, False)])
def test_only_true_stops(result: Any, is_stopping: bool) -> None:
    def choose(step: int, loss: float) -> Any:
        return result

    callbacks = UserCallbacks([choose])
    callbacks.call("on_step_end", 1, 0.5)
    assert (callbacks.is_stopping, callbacks.stop_reason) == (is_stopping, "choose" * is_stopping)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_after_an_error_none_is_called(kind: type[BaseException]) -> None:
    def fail(step: int, loss: float) -> None:
        raise kind("mine")

    recorder = Recorder()
    callbacks = UserCallbacks([fail, recorder])
    callbacks.call("on_step_end", 1, 0.5)
    callbacks.call("on_evaluate", 1, {})
    assert callbacks.is_stopping
    assert isinstance(callbacks.error, kind)
    assert recorder.calls == []


class OfTransformers:
    def on_train_begin(self, args: Any, state: Any, control: Any) -> None: ...


class WithArguments:
    def on_step_end(self, args: Any, state: Any, control: Any) -> None: ...


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Recorder, r"a class, not an object · callbacks: Recorder · write Recorder\(\)"),
        (OfTransformers(), "on_train_begin is never called"),
        (WithArguments(), r"on_step_end is called with \(step, loss\), which it does not take"),
        (lambda step: None, "which it does not take"),
        ("wandb", "no callback · callbacks: str"),
    ],
)
def test_what_would_not_be_called_is_refused(callback: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UserCallbacks([callback])


def test_a_function_without_a_signature_is_taken() -> None:
    UserCallbacks([print, max]).call("on_step_end", 1, 0.5)
