"""`/metrics` is Prometheus' text format 0.0.4, with the numbers of the scheduler."""

import re

from lorgnette.server.metrics import OUTCOMES, format_metrics
from lorgnette.server.stats import Histogram, SchedulerStats

SAMPLE = re.compile(r'([a-z_]+)(?:\{([a-z_]+)="([^"\\\n]*)"\})? ([0-9.e+-]+|\+Inf)')


def parse(text: str) -> tuple[dict[str, str], dict[tuple[str, str], float]]:
    """Metric → type, and (metric, label's value) → number. Every line must be of the format."""
    kinds: dict[str, str] = {}
    numbers: dict[tuple[str, str], float] = {}
    described = ""
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            described = line.split(" ", 3)[2]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == described
            assert name not in kinds
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            name, _, value, number = match.groups()
            assert name in kinds or kinds[re.sub("_(bucket|sum|count)$", "", name)] == "histogram", line
            assert (name, value or "") not in numbers
            numbers[name, value or ""] = float(number)
    return kinds, numbers


def test_the_numbers_are_those_of_the_scheduler() -> None:
    stats = SchedulerStats(waiting=3, running=2, prompt_tokens=240, answer_tokens=26, feature_bytes=4096)
    stats.outcomes.update(stop=5, refused=1)
    kinds, numbers = parse(format_metrics(stats, "ready"))
    assert numbers["lorgnette_ready", ""] == 1
    assert numbers["lorgnette_requests_waiting", ""] == 3
    assert numbers["lorgnette_requests_running", ""] == 2
    assert numbers["lorgnette_prompt_tokens_total", ""] == 240
    assert numbers["lorgnette_answer_tokens_total", ""] == 26
    assert numbers["lorgnette_feature_bytes", ""] == 4096
    outcomes = {value: number for (name, value), number in numbers.items() if name == "lorgnette_requests_total"}
    assert outcomes == {**dict.fromkeys(OUTCOMES, 0), "stop": 5, "refused": 1}
    assert kinds["lorgnette_requests_total"] == kinds["lorgnette_answer_tokens_total"] == "counter"
    assert all((kind == "counter") == name.endswith("_total") for name, kind in kinds.items())


def test_a_server_that_is_not_ready_says_so() -> None:
    for state in ("loading", "lost", "closed"):
        assert parse(format_metrics(SchedulerStats(), state))[1]["lorgnette_ready", ""] == 0


def test_buckets_are_cumulative_and_end_with_all_values() -> None:
    stats = SchedulerStats(token=Histogram((0.01, 0.1)))
    for value in (0.005, 0.01, 0.05, 7.0):
        stats.token.add(value)
    kinds, numbers = parse(format_metrics(stats, "ready"))
    assert kinds["lorgnette_token_seconds"] == "histogram"
    buckets = {value: number for (name, value), number in numbers.items() if name == "lorgnette_token_seconds_bucket"}
    assert buckets == {"0.01": 2, "0.1": 3, "+Inf": 4}
    assert numbers["lorgnette_token_seconds_count", ""] == 4
    assert numbers["lorgnette_token_seconds_sum", ""] == 7.065


def test_an_outcome_without_a_name_here_is_written_too() -> None:
    stats = SchedulerStats()
    stats.outcomes["timeout"] = 2
    assert parse(format_metrics(stats, "ready"))[1]["lorgnette_requests_total", "timeout"] == 2
