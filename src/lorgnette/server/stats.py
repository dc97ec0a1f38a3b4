"""Numbers of a running server, for `/metrics`."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

FIRST_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Counts of values in seconds.

    bounds: the largest value of each bucket, ascending. counts: of each bucket, and at the end of larger values; not
    cumulative. sum: of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass
class SchedulerStats:
    """waiting, running: requests now. outcomes: requests that have ended, by outcome: stop, length, cancelled, error;
    refused: too many waited. first_token: seconds from the request to its first token; token: between two tokens
    of a request. feature_bytes: image features that are kept."""

    waiting: int = 0
    running: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    feature_bytes: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS))
    token: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
