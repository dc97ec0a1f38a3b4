"""Counts the examples' tokens with the processor that training uses, and finds those that training cannot use well.

Finds examples above max_length, answers longer than predict.max_new_tokens, and answers without an end token. Knows
nothing about weights, nor about other problems of a row.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count as count_up
from statistics import median

import numpy as np

from lorgnette.errors import LorgnetteError
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Finding, FindingKind


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Token counts of all examples that can be encoded, including those above max_length."""

    num_examples: int
    num_tokens: int
    num_image_tokens: int
    num_labels: int
    """Tokens with loss."""
    shortest: int
    median: float
    longest: int
    histogram: tuple[tuple[int, int, int], ...]
    """(first length, end (exclusive), number of examples) of each bin."""


def compute_token_stats(
    processor: Processor, rows: Iterable[Example], *, max_new_tokens: int
) -> tuple[TokenStats | None, list[Finding]]:
    """The rows' token counts (None without rows) and what speaks against training on them.

    max_new_tokens: `predict.max_new_tokens`, which includes the end token.
    """
    unbounded = replace(processor, settings=processor.settings.model_copy(update={"max_length": 2**31 - 1}))
    lengths: list[int] = []
    num_image_tokens = num_labels = 0
    findings: list[Finding] = []
    for row in rows:
        try:
            encoded = unbounded.encode(row)
        except LorgnetteError as error:
            findings.append(_build_finding(row, "unusable", error))
            continue
        lengths.append(len(encoded.input_ids))
        num_image_tokens += sum(grid.num_tokens for grid in encoded.grids)
        num_labels += encoded.num_labels
        if len(encoded.input_ids) > processor.settings.max_length:
            # The error that training would raise, in the same words.
            try:
                processor.encode(row)
            except LorgnetteError as error:
                findings.append(_build_finding(row, "over-budget", error))
        num_skipped = processor.count_skipped_answers(encoded.example)
        findings += _check_answers(encoded, processor.eos_token_id, max_new_tokens, num_skipped)
    if not lengths:
        return None, findings
    shortest, middle, longest = min(lengths), float(median(lengths)), max(lengths)
    totals = len(lengths), sum(lengths), num_image_tokens, num_labels
    return TokenStats(*totals, shortest, middle, longest, compute_histogram(lengths)), findings


def compute_histogram(values: list[int], max_bins: int = 20) -> tuple[tuple[int, int, int], ...]:
    """(start, end, count) of at most `max_bins` bins of one width (1, 2 or 5 times a power of ten) over all values."""
    low, high = min(values), max(values)
    widths = (digit * 10**power for power in count_up() for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < max_bins)
    counts = np.bincount(np.array(values) // width - low // width).tolist()
    return tuple((i * width, (i + 1) * width, count) for i, count in enumerate(counts, low // width))


def _build_finding(row: Example, kind: FindingKind, error: LorgnetteError) -> Finding:
    return Finding.for_example(row, kind, error.message, error.hint or "correct or remove the row")


def _check_answers(encoded: Encoded, eos_token_id: int, max_new_tokens: int, num_skipped: int) -> Iterable[Finding]:
    """Each answer is one run of labels. num_skipped: answers that are not trained."""
    row = encoded.example
    has_loss = np.pad(encoded.labels != IGNORE_INDEX, 1)
    runs = np.flatnonzero(has_loss[1:] != has_loss[:-1]).reshape(-1, 2).tolist()
    longest = max((end - start for start, end in runs), default=0)
    if longest > max_new_tokens:
        message = f"an answer has {longest} tokens, but predictions stop at predict.max_new_tokens={max_new_tokens}"
        yield Finding.for_example(row, "overlong-answer", message, "raise it, or shorten the answer")
    num_answers = sum(turn.role == "assistant" and turn.has_loss for turn in row.turns) - num_skipped
    num_ended = sum(int(encoded.labels[end - 1]) == eos_token_id for _, end in runs)
    if num_ended < num_answers:
        message = f"{num_answers - num_ended} of {num_answers} answers get no end token from the chat template"
        hint = "use an Instruct checkpoint's own template: without end tokens the model does not learn to stop"
        yield Finding.for_example(row, "no-end", message, hint)
