"""Counts the examples' tokens with the processor that training uses, and finds those that training cannot use well.

Finds examples above max_length, answers longer than predict.max_new_tokens, and answers without an end token. Knows
nothing about weights, nor about other problems of a row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as count_up
from statistics import median

import numpy as np

from lorgnette.errors import LorgnetteError
from lorgnette.io.processes import count_processes, map_in_processes
from lorgnette.processing.encoded_rows import TextRow
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Finding, FindingKind

MIN_SHARED_ROWS = 8192
"""The tokens of fewer rows are counted in this process."""
_BLOCK_SIZE = 4096
"""Rows whose tokens another process counts at once."""


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


@dataclass(slots=True)
class TokenCounts:
    """What is counted of rows, in their order. lengths, num_image_tokens, num_labels: of those that can be encoded.
    num_skipped, num_flat: of each row that can be trained on, as `EncodeResult` has them; 0 of others."""

    lengths: list[int] = field(default_factory=list)
    num_image_tokens: int = 0
    num_labels: int = 0
    findings: list[Finding] = field(default_factory=list)
    num_skipped: list[int] = field(default_factory=list)
    num_flat: list[int] = field(default_factory=list)

    def extend(self, counts: "TokenCounts") -> None:
        """Add those of the rows that follow."""
        self.lengths += counts.lengths
        self.num_image_tokens += counts.num_image_tokens
        self.num_labels += counts.num_labels
        self.findings += counts.findings
        self.num_skipped += counts.num_skipped
        self.num_flat += counts.num_flat

    @property
    def stats(self) -> TokenStats | None:
        """None without rows."""
        if not self.lengths:
            return None
        shortest, middle, longest = min(self.lengths), float(median(self.lengths)), max(self.lengths)
        totals = len(self.lengths), sum(self.lengths), self.num_image_tokens, self.num_labels
        return TokenStats(*totals, shortest, middle, longest, compute_histogram(self.lengths))


def count_tokens(
    processor: Processor,
    rows: Sequence[Example],
    *,
    max_new_tokens: int,
    on_rows: Callable[[int], None] = lambda count: None,
) -> TokenCounts:
    """The rows' token counts and what speaks against training on them. Processes share many rows.

    max_new_tokens: `predict.max_new_tokens`, which includes the end token. on_rows: is told of rows that are counted.
    """
    unbounded = replace(processor, settings=processor.settings.model_copy(update={"max_length": 2**31 - 1}))
    counter = _TokenCounter(rows, processor, unbounded, max_new_tokens)
    blocks = [range(start, min(start + _BLOCK_SIZE, len(rows))) for start in range(0, len(rows), _BLOCK_SIZE)]
    total = TokenCounts()
    num_processes = count_processes() if len(rows) > MIN_SHARED_ROWS else 1
    for numbers, counts in zip(blocks, map_in_processes(counter.count_block, blocks, num_processes), strict=True):
        on_rows(len(numbers))
        total.extend(counts)
    return total


@dataclass(frozen=True, slots=True)
class _TokenCounter:
    rows: Sequence[Example]
    processor: Processor
    unbounded: Processor
    max_new_tokens: int

    def count_block(self, numbers: range) -> TokenCounts:
        counts = TokenCounts()
        for number in numbers:
            num_skipped, num_flat = self._count(self.rows[number], counts)
            counts.num_skipped.append(num_skipped)
            counts.num_flat.append(num_flat)
        return counts

    def _count(self, row: Example, counts: TokenCounts) -> tuple[int, int]:
        """Add a row. Returns its num_skipped and num_flat."""
        try:
            encoded = self.unbounded.encode_row(row)
        except LorgnetteError as error:
            counts.findings.append(_build_finding(row, "unusable", error))
            return 0, 0
        num_image_tokens = sum([grid.num_tokens for grid in encoded.grids])
        length = len(encoded.text) + num_image_tokens
        counts.lengths.append(length)
        counts.num_image_tokens += num_image_tokens
        counts.num_labels += sum(encoded.spans[1::2]) - sum(encoded.spans[::2])
        is_overlong = length > self.processor.settings.max_length
        if is_overlong:
            # The error that training would raise, in the same words.
            try:
                self.processor.encode_row(row)
            except LorgnetteError as error:
                counts.findings.append(_build_finding(row, "over-budget", error))
        counts.findings += _check_answers(encoded, self.processor.eos_token_id, self.max_new_tokens)
        num_flat = self.processor.count_flat_boxes(row) if encoded.example is not row else 0
        return (0, 0) if is_overlong else (encoded.num_skipped, num_flat)


def compute_histogram(values: list[int], max_bins: int = 20) -> tuple[tuple[int, int, int], ...]:
    """(start, end, count) of at most `max_bins` bins of one width (1, 2 or 5 times a power of ten) over all values."""
    low, high = min(values), max(values)
    widths = (digit * 10**power for power in count_up() for digit in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < max_bins)
    counts = np.bincount(np.array(values) // width - low // width).tolist()
    return tuple((i * width, (i + 1) * width, count) for i, count in enumerate(counts, low // width))


def _build_finding(row: Example, kind: FindingKind, error: LorgnetteError) -> Finding:
    return Finding.for_example(row, kind, error.message, error.hint or "correct or remove the row")


def _check_answers(encoded: TextRow, eos_token_id: int, max_new_tokens: int) -> Iterable[Finding]:
    """Each answer is one span of labels."""
    row, spans = encoded.example, list(zip(encoded.spans[::2], encoded.spans[1::2], strict=True))
    longest = max((end - start for start, end in spans), default=0)
    if longest > max_new_tokens:
        message = f"an answer has {longest} tokens, but predictions stop at predict.max_new_tokens={max_new_tokens}"
        yield Finding.for_example(row, "overlong-answer", message, "raise it, or shorten the answer")
    num_answers = sum([turn.role == "assistant" and turn.has_loss for turn in row.turns]) - encoded.num_skipped
    num_ended = sum([encoded.get_text_id(end - 1) == eos_token_id for _, end in spans])
    if num_ended < num_answers:
        message = f"{num_answers - num_ended} of {num_answers} answers get no end token from the chat template"
        hint = "use an Instruct checkpoint's own template: without end tokens the model does not learn to stop"
        yield Finding.for_example(row, "no-end", message, hint)
