"""Metrics of the user: a function of an answer and its references becomes a metric like the others.

    @lorgnette.register_metric
    def is_short(answer, references):      # the references are a list: an image may have several
        return len(answer.split()) < 8     # a number, or True and False

The value of the metric is the mean over the answers, with the same intervals and tests as every metric.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.parse import shorten
from lorgnette.metrics.registry import METRIC_GROUPS, METRICS, Metric
from lorgnette.metrics.score import Tally, tally_mean

MetricFunction = Callable[[str, list[str]], float]
Better = Literal["higher", "lower"]
F = TypeVar("F", bound=MetricFunction)
_MAX_TEXT = 80
_own: dict[str, MetricFunction] = {}
"""The registered functions by their metric's name."""


class OwnMetricError(LorgnetteError):
    """A metric of the user failed. Its cause is what the function raised."""


@overload
def register_metric(function: F, *, name: str | None = None, better: Better = "higher", description: str = "") -> F: ...
@overload
def register_metric(
    *, name: str | None = None, better: Better = "higher", description: str = ""
) -> Callable[[F], F]: ...


def register_metric(
    function: F | None = None, *, name: str | None = None, better: Better = "higher", description: str = ""
) -> F | Callable[[F], F]:
    """Let a function (answer, references) → number be used as a metric, by its name. Returns the function.

    `@register_metric` works, and `@register_metric(better="lower")`. name: default: the function's. A function that is
    registered again replaces the one before. Raises UsageError for a name that is taken.
    """
    if function is None:
        return partial(register_metric, name=name, better=better, description=description)
    _register(function, name, better, description)
    return function


def resolve_metric_names(metrics: str | MetricFunction | Iterable[str | MetricFunction]) -> tuple[str, ...]:
    """The names of metrics, which may be given as functions; these are registered. A text has names with commas."""
    if isinstance(metrics, str):
        return tuple(word.strip() for word in metrics.split(",") if word.strip())
    items = [metrics] if callable(metrics) else metrics
    return tuple(item if isinstance(item, str) else _find_name(item) or _register(item) for item in items)


def check_own_metrics(names: Iterable[str], references: Sequence[Sequence[str]]) -> None:
    """Call each of the user's metrics once, before a model is loaded. Raises OwnMetricError if it fails."""
    for texts in references[:1]:
        for name in names:
            if name in _own:
                _score(_own[name], name, texts[0], texts)


def _register(function: Any, name: str | None = None, better: Better = "higher", note: str = "") -> str:
    """Returns the metric's name."""
    if not callable(function):
        hint = "give a function (answer, references) -> float"
        raise UsageError("no metric", where=f"a {type(function).__name__}", hint=hint)
    if better not in get_args(Better):
        hint = "write 'higher' or 'lower'"
        raise UsageError("what is better?", where=f"better={better!r}", hint=hint)
    name = name or str(getattr(function, "__name__", type(function).__name__))
    if not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
        raise UsageError("no name for a metric", where=name, hint='give it one: register_metric(…, name="is_short")')
    if name in METRIC_GROUPS or name == "loss" or (name in METRICS and name not in _own):
        raise UsageError("a metric of lorgnette has this name", where=name, hint="choose another")

    def compute(hypotheses: Sequence[str], references: Sequence[Sequence[str]], name: str = name) -> Tally:
        pairs = zip(hypotheses, references, strict=True)
        return tally_mean(np.array([_score(function, name, *pair) for pair in pairs], np.float64))

    doc = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0]
    _own[name] = function
    METRICS[name] = Metric(note or doc or "a metric of the user", compute, str, better)
    return name


def _find_name(function: MetricFunction) -> str | None:
    return next((name for name, known in _own.items() if known is function), None)


def _score(function: MetricFunction, name: str, answer: str, references: Sequence[str]) -> float:
    where = f"metric {name}, answer {shorten(repr(answer), _MAX_TEXT)}"
    try:
        value = function(answer, list(references))
    except Exception as error:
        message = f"the metric failed: {type(error).__name__}: {error}"
        raise OwnMetricError(message, where=where, hint="correct the function, and register it again") from error
    if not isinstance(value, bool | int | float | np.number | np.bool_) or not np.isfinite(float(value)):
        message = f"the metric gave {shorten(repr(value), _MAX_TEXT)}, which is not a finite number"
        raise OwnMetricError(message, where=where, hint="return a number")
    return float(value)
