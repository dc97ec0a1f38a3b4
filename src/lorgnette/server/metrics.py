"""`/metrics`: the numbers of a running server, as Prometheus reads them (text format 0.0.4)."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from lorgnette.server.stats import Histogram, SchedulerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("stop", "length", "cancelled", "error", "refused")
"""All are written from the start: a rate needs the zero before the first request."""


def format_metrics(stats: SchedulerStats, state: str) -> str:
    """The text. state: of the scheduler, such as "ready"."""
    outcomes = {
        f'outcome="{name}"': stats.outcomes[name] for name in (*OUTCOMES, *sorted({*stats.outcomes} - {*OUTCOMES}))
    }
    lines = (
        *_format("ready", "gauge", "Whether answers are given now: 1 or 0.", int(state == "ready")),
        *_format("requests_waiting", "gauge", "Requests in the queue.", stats.waiting),
        *_format("requests_running", "gauge", "Requests that are answered now.", stats.running),
        *_format("requests_total", "counter", "Requests that have ended, by outcome.", outcomes),
        *_format("prompt_tokens_total", "counter", "Tokens of prompts, those of images included.", stats.prompt_tokens),
        *_format("answer_tokens_total", "counter", "Tokens of answers.", stats.answer_tokens),
        *_format("feature_bytes", "gauge", "Image features that are kept on the device.", stats.feature_bytes),
        *_format_histogram("first_token_seconds", "From a request to its first token.", stats.first_token),
        *_format_histogram("token_seconds", "Between two tokens of an answer.", stats.token),
    )
    return "\n".join(lines) + "\n"


def _format(name: str, kind: str, description: str, values: float | Mapping[str, float]) -> Iterator[str]:
    """values: one, or by label."""
    yield f"# HELP lorgnette_{name} {description}"
    yield f"# TYPE lorgnette_{name} {kind}"
    for label, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        yield f"lorgnette_{name}{label and f'{{{label}}}'} {value}"


def _format_histogram(name: str, description: str, histogram: Histogram) -> Iterator[str]:
    counts = list(accumulate(histogram.counts))  # at one moment: the device thread goes on counting
    yield f"# HELP lorgnette_{name} {description}"
    yield f"# TYPE lorgnette_{name} histogram"
    for bound, count in zip((*histogram.bounds, "+Inf"), counts, strict=True):
        yield f'lorgnette_{name}_bucket{{le="{bound}"}} {count}'
    yield f"lorgnette_{name}_sum {histogram.sum}"
    yield f"lorgnette_{name}_count {counts[-1]}"
