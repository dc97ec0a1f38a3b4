"""Callbacks of the user: functions and objects that a training calls between its steps.

    def stop_early(step, loss):            # a function is called after each step
        return loss < 0.1                  # True ends the training

    class Watch:                           # an object has one method or several
        def on_step_end(self, step, loss): ...
        def on_log(self, report): ...              # training.trainer.StepReport
        def on_evaluate(self, step, scores): ...   # {"eval_loss": 1.2, "ROUGE-L": 0.4}

A callback that raises an exception loses nothing: the step is saved, then the exception goes on.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lorgnette.errors import UsageError

HOOKS: Mapping[str, tuple[str, ...]] = {
    "on_step_end": ("step", "loss"),
    "on_log": ("report",),
    "on_evaluate": ("step", "scores"),
}
"""Method → its arguments."""


class UserCallbacks:
    """stop_reason: which callback ended the training; "" if none has. error: what a callback raised."""

    def __init__(self, callbacks: Any = ()) -> None:
        """callbacks: one or a sequence. Raises UsageError for an object that could not be called as it expects."""
        self._functions: dict[str, list[tuple[str, Callable[..., Any]]]] = {hook: [] for hook in HOOKS}
        self.stop_reason = ""
        self.error: BaseException | None = None
        for callback in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
            name = getattr(callback, "__name__", type(callback).__name__)
            for hook, function in _list_functions(callback, name).items():
                self._functions[hook].append((name, function))

    @property
    def is_stopping(self) -> bool:
        return bool(self.stop_reason) or self.error is not None

    def raise_error(self, note: str = "") -> None:
        """Raise what a callback raised, if one did. note: is printed below it."""
        if self.error is not None:
            if note:
                self.error.add_note(note)
            raise self.error

    def call(self, hook: str, *values: Any) -> None:
        """Call the method of every callback. After an error none is called."""
        for name, function in self._functions[hook]:
            if self.error is not None:
                return
            try:
                result = function(*values)
            except BaseException as error:  # also Ctrl-C; raised again when the step is saved
                self.error = error
            else:
                if isinstance(result, bool | np.bool_) and result:
                    self.stop_reason = self.stop_reason or name


def _list_functions(callback: Any, name: str) -> dict[str, Callable[..., Any]]:
    """Hook → function of this callback."""
    known = ", ".join(f"{hook}({', '.join(arguments)})" for hook, arguments in HOOKS.items())
    hint = f"give a function of (step, loss), or an object with {known}"
    where = f"callbacks: {name}"
    if isinstance(callback, type):
        raise UsageError("a class, not an object", where=where, hint=f"write {name}()")
    methods = [method for method in dir(callback) if method.startswith("on_") and callable(getattr(callback, method))]
    if unknown := [method for method in methods if method not in HOOKS]:
        raise UsageError(f"{unknown[0]} is never called", where=where, hint=hint)
    functions = {method: getattr(callback, method) for method in methods}
    if not functions and callable(callback):
        functions = {"on_step_end": callback}
    if not functions:
        raise UsageError("no callback", where=where, hint=hint)
    for hook, function in functions.items():
        try:
            inspect.signature(function).bind(*HOOKS[hook])
        except TypeError:
            message = f"{hook} is called with ({', '.join(HOOKS[hook])}), which it does not take"
            raise UsageError(message, where=where, hint=hint) from None
        except ValueError:  # a built-in function has no signature
            pass
    return functions
