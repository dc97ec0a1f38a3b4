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
from lorgnette.processing.processor import Encoder
from lorgnette.types import IGNORED, Encoded, Example, Finding, FindingKind

_BINS = 20
_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of the examples that can be encoded, also those over the budget. bins: (from, up to but not with, how many)."""

    examples: int
    total: int
    of_pictures: int
    trained: int
    """On which loss is taken."""
    shortest: int
    median: float
    longest: int
    bins: tuple[tuple[int, int, int], ...]


def counted(encoder: Encoder, rows: Iterable[Example], *, longest_answer: int) -> tuple[Tokens | None, list[Finding]]:
    """The rows' tokens (None: of no row), and what stands against training on them.

    longest_answer: `predict.max_new_tokens`, the end token included.
    """
    encode = encoder.settings.model_copy(update={"max_tokens": _UNBOUNDED})
    unbounded = Encoder(encoder.tokenizer, encoder.template, encoder.rule, encode, encoder.size_of)
    lengths: list[int] = []
    of_pictures = trained = 0
    findings: list[Finding] = []
    for row in rows:
        try:
            encoded = unbounded.encode(row)
        except LorgnetteError as error:
            findings.append(_refused(row, "unusable", error))
            continue
        lengths.append(len(encoded.tokens))
        of_pictures += sum(grid.tokens for grid in encoded.grids)
        trained += encoded.label_count
        findings += [*_of_budget(encoder, encoded), *_of_answers(encoded, encoder.end, longest_answer)]
    if not lengths:
        return None, findings
    middle = float(median(lengths))
    tokens = Tokens(len(lengths), sum(lengths), of_pictures, trained, min(lengths), middle, max(lengths), bins(lengths))
    return tokens, findings


def bins(values: list[int], most: int = _BINS) -> tuple[tuple[int, int, int], ...]:
    """At most `most` bins of one round width (1, 2 or 5 times a power of ten) that hold all values."""
    low, high = min(values), max(values)
    width = 1
    while high // width - low // width >= most:
        width = next(step for step in _widths() if step > width)
    counts = np.bincount(np.array(values) // width - low // width)
    start = low // width * width
    return tuple((start + i * width, start + (i + 1) * width, count) for i, count in enumerate(counts.tolist()))


def _widths() -> Iterable[int]:
    return (digit * 10**power for power in range(math.ceil(math.log10(_UNBOUNDED))) for digit in (1, 2, 5))


def _of_budget(encoder: Encoder, encoded: Encoded) -> Iterable[Finding]:
    """What training would say, in its own words."""
    if len(encoded.tokens) > encoder.settings.max_tokens:
        try:
            encoder.encode(encoded.example)
        except LorgnetteError as error:
            yield _refused(encoded.example, "over-budget", error)


def _refused(row: Example, kind: FindingKind, error: LorgnetteError) -> Finding:
    return Finding.at(row, kind, error.what, error.remedy or "correct or remove the row")


def _of_answers(encoded: Encoded, end: int, longest: int) -> Iterable[Finding]:
    """Labels stand in runs, one an answer."""
    row = encoded.example
    runs = _runs(encoded.labels)
    size = max((stop - start for start, stop in runs), default=0)
    if size > longest:
        what = f"an answer of {size} tokens: predictions end at predict.max_new_tokens={longest}"
        yield Finding.at(row, "overlong-answer", what, "raise predict.max_new_tokens, or shorten the answer")
    answers = sum(turn.role == "assistant" for turn in row.turns)
    ended = sum(int(encoded.labels[stop - 1]) == end for _, stop in runs)
    if ended < answers:
        what = f"{answers - ended} of {answers} answers get no end token from the chat template"
        remedy = "use an Instruct checkpoint's own template: a model that never sees an end does not learn to stop"
        yield Finding.at(row, "no-end", what, remedy)


def _runs(labels: Int32[np.ndarray, " T"]) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of labels."""
    trained = np.zeros(len(labels) + 2, bool)
    trained[1:-1] = labels != IGNORED
    edges = np.flatnonzero(trained[1:] != trained[:-1])
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
