"""How many tokens the examples have, counted by the very encoder that training uses: who has too many, whose answer is
longer than predictions may be, whose answer does not end.

Knows nothing about weights, and nothing about what else is wrong with a row.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
from jaxtyping import Int32

from lorgnette.errors import LorgnetteError
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Finding, FindingKind

_MAX_BINS = 20
_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Of the examples that can be encoded, also those over the budget. bins: (from, up to but not with, how many)."""

    num_examples: int
    num_tokens: int
    num_image_tokens: int
    num_labels: int
    """On which loss is taken."""
    shortest: int
    median: float
    longest: int
    histogram: tuple[tuple[int, int, int], ...]


def compute_token_stats(
    processor: Processor, rows: Iterable[Example], *, max_new_tokens: int
) -> tuple[TokenStats | None, list[Finding]]:
    """The rows' tokens (None: of no row), and what stands against training on them.

    longest_answer: `predict.max_new_tokens`, the end token included.
    """
    settings = processor.settings.model_copy(update={"max_length": _UNBOUNDED})
    unbounded = Processor(
        processor.tokenizer, processor.chat_template, processor.image_processor, settings, processor.read_size
    )
    lengths: list[int] = []
    of_pictures = trained = 0
    findings: list[Finding] = []
    for row in rows:
        try:
            encoded = unbounded.encode(row)
        except LorgnetteError as error:
            findings.append(_build_finding(row, "unusable", error))
            continue
        lengths.append(len(encoded.input_ids))
        of_pictures += sum(grid.num_tokens for grid in encoded.grids)
        trained += encoded.num_labels
        findings += [
            *_check_length(processor, encoded),
            *_check_answers(encoded, processor.eos_token_id, max_new_tokens),
        ]
    if not lengths:
        return None, findings
    middle = float(median(lengths))
    tokens = TokenStats(
        len(lengths), sum(lengths), of_pictures, trained, min(lengths), middle, max(lengths), compute_histogram(lengths)
    )
    return tokens, findings


def compute_histogram(values: list[int], max_bins: int = _MAX_BINS) -> tuple[tuple[int, int, int], ...]:
    """At most `most` bins of one round width (1, 2 or 5 times a power of ten) that hold all values."""
    low, high = min(values), max(values)
    width = 1
    while high // width - low // width >= max_bins:
        width = next(step for step in _iter_widths() if step > width)
    counts = np.bincount(np.array(values) // width - low // width)
    start = low // width * width
    return tuple((start + i * width, start + (i + 1) * width, count) for i, count in enumerate(counts.tolist()))


def _iter_widths() -> Iterable[int]:
    return (digit * 10**power for power in range(math.ceil(math.log10(_UNBOUNDED))) for digit in (1, 2, 5))


def _check_length(processor: Processor, encoded: Encoded) -> Iterable[Finding]:
    """What training would say, in its own words."""
    if len(encoded.input_ids) > processor.settings.max_length:
        try:
            processor.encode(encoded.example)
        except LorgnetteError as error:
            yield _build_finding(encoded.example, "over-budget", error)


def _build_finding(row: Example, kind: FindingKind, error: LorgnetteError) -> Finding:
    return Finding.for_example(row, kind, error.message, error.hint or "correct or remove the row")


def _check_answers(encoded: Encoded, eos_token_id: int, max_new_tokens: int) -> Iterable[Finding]:
    """Labels stand in runs, one an answer."""
    row = encoded.example
    runs = _find_runs(encoded.labels)
    size = max((stop - start for start, stop in runs), default=0)
    if size > max_new_tokens:
        what = f"an answer of {size} tokens: predictions end at predict.max_new_tokens={max_new_tokens}"
        yield Finding.for_example(row, "overlong-answer", what, "raise predict.max_new_tokens, or shorten the answer")
    answers = sum(turn.role == "assistant" for turn in row.turns)
    ended = sum(int(encoded.labels[stop - 1]) == eos_token_id for _, stop in runs)
    if ended < answers:
        what = f"{answers - ended} of {answers} answers get no end token from the chat template"
        remedy = "use an Instruct checkpoint's own template: a model that never sees an end does not learn to stop"
        yield Finding.for_example(row, "no-end", what, remedy)


def _find_runs(labels: Int32[np.ndarray, " T"]) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of labels."""
    trained = np.zeros(len(labels) + 2, bool)
    trained[1:-1] = labels != IGNORE_INDEX
    edges = np.flatnonzero(trained[1:] != trained[:-1])
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
