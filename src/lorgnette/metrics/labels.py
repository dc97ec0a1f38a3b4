"""Answers that are one of a few labels: accuracy, macro-F1, and which label is answered for which.

An answer is a label if both are equal without differences in letter case, white space and full stops at the end (and
in Unicode's composition of letters, since folders on macOS have other bytes). Any other answer is `other`: it is wrong,
and no label's. With several references, the label is the one that the answer equals, else the first.

Macro-F1 is the mean over the labels of F1 = 2·TP / (2·TP + FP + FN), as scikit-learn's
`f1_score(references, answers, labels=labels, average="macro", zero_division=0)`. The counts of each example are a row
of (references, answers, matches) per label, so that a resampled set needs their sums only. A label that a resampled set
has neither as a reference nor as an answer is left out of its mean.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from lorgnette.metrics.score import Tally, tally_mean, tally_share
from lorgnette.metrics.tokenizers import normalize_whitespace

MAX_LABELS = 50
"""The most labels that answers are taken for by themselves: more fill no table that is read."""
MAX_LABEL_LENGTH = 50
"""Characters of the longest label: a longer text is a sentence, though a data set may repeat it."""
MAX_CELLS = 20_000_000
"""Counts of all examples and labels; macro-F1 has no value if there would be more, since they would fill the memory."""
NUM_OTHERS = 3
OTHER = "other"
"""Stands for all answers that are no label."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A label in numbers.

    support: examples with it. num_answers: answers that are it. num_correct: both. precision is None without answers,
    recall without support.
    """

    label: str
    support: int
    num_answers: int
    num_correct: int
    precision: float | None
    recall: float | None
    f1: float


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Which label was answered for which.

    confusion: [label][answer] examples; its last column, `other`, has the answers that are no label. others: the most
    common of these, as written, with their counts.
    """

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    others: tuple[tuple[str, int], ...] = ()

    @property
    def num_examples(self) -> int:
        return sum(map(sum, self.confusion))

    @property
    def num_others(self) -> int:
        return sum(row[-1] for row in self.confusion)

    @property
    def accuracy(self) -> float:
        return sum(row[i] for i, row in enumerate(self.confusion)) / max(1, self.num_examples)

    @property
    def macro_f1(self) -> float:
        """The mean over the labels that examples have."""
        values = [row.f1 for row in self.rows if row.support]
        return sum(values) / max(1, len(values))

    @property
    def rows(self) -> list[LabelRow]:
        """One for each label."""
        rows = []
        for i, label in enumerate(self.labels):
            support, correct = sum(self.confusion[i]), self.confusion[i][i]
            num_answers = sum(row[i] for row in self.confusion)
            precision = correct / num_answers if num_answers else None
            recall = correct / support if support else None
            f1 = 2 * correct / max(1, support + num_answers)
            rows.append(LabelRow(label, support, num_answers, correct, precision, recall, f1))
        return rows

    def find_shown_rows(self) -> list[int]:
        """The rows of `confusion` of labels that examples have."""
        return [i for i, row in enumerate(self.confusion) if any(row)]

    def find_shown_columns(self) -> list[int]:
        """The columns of `confusion` of labels that examples have or that were answered, and `other`."""
        last = len(self.labels)
        return [j for j in range(last) if any(self.confusion[j]) or any(row[j] for row in self.confusion)] + [last]

    @property
    def mistakes(self) -> list[tuple[str, str, int]]:
        """(label, another one that was answered, how often), the most common first; without `other`."""
        found = [
            (label, answer, row[j])
            for i, (label, row) in enumerate(zip(self.labels, self.confusion, strict=True))
            for j, answer in enumerate(self.labels)
            if i != j and row[j]
        ]
        return sorted(found, key=lambda mistake: -mistake[2])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "labels": [asdict(row) for row in self.rows],
            "confusion": self.confusion,
            "others": self.others,
        }


class LabelFinder:
    """Finds out whether the references of prompts are labels; keeps no more of them than labels can be.

    They are labels if there are 2 to 50 distinct ones, each of at most 50 characters in one line, and if they repeat:
    there are at least twice as many prompts as labels, and at most a tenth of the prompts, rounded up, have a label
    that no other prompt has. So three classes of ten images are labels; captions are not, since hardly any occurs
    twice; nor are answers to open questions, where `yes` is common and most others are there once. A rare class is
    allowed, because real data has some.
    """

    def __init__(self) -> None:
        self._counts, self._spellings = Counter[str](), Counter[tuple[str, str]]()
        self._num_prompts, self._has_others = 0, False

    def add(self, texts: Sequence[str]) -> None:
        """Add the references of a prompt."""
        if self._has_others:
            return
        keys = {normalize_label(text) for text in texts}
        if any(not key or len(key) > MAX_LABEL_LENGTH for key in keys) or any("\n" in text.strip() for text in texts):
            self._has_others = True
            return
        self._num_prompts += 1
        self._counts.update(keys)
        self._spellings.update((normalize_label(text), text.strip()) for text in texts)
        self._has_others = len(self._counts) > MAX_LABELS

    def find(self) -> tuple[str, ...]:
        """The labels, sorted, if the references are labels; else none."""
        counts, num_single = self._counts, sum(count == 1 for count in self._counts.values())
        is_rare = len(counts) < 2 or self._num_prompts < 2 * len(counts) or num_single > -(-self._num_prompts // 10)
        return () if self._has_others or is_rare else tuple(_choose_spellings(self._spellings).values())


def find_labels(references: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The labels of `LabelFinder`, from the references of each prompt."""
    finder = LabelFinder()
    for texts in references:
        finder.add(texts)
    return finder.find()


def normalize_label(text: str) -> str:
    """What is compared: NFC, one space between words, no full stop at the end, lower case."""
    return normalize_whitespace(text).rstrip(".。 ").casefold()


def classify(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Tally, Tally]:
    """Accuracy and macro-F1. Macro-F1 of an example alone is 1 if its answer is right, else 0."""
    keys = {normalize_label(text) for texts in references for text in texts}
    index = {key: i for i, key in enumerate(sorted(keys))}
    true, answered = _match(hypotheses, references, index)
    is_correct = (true == answered).astype(np.float64)
    accuracy = tally_share(is_correct)
    if 3 * len(index) * len(true) > MAX_CELLS:
        note = f"{len(index):,} distinct references in {len(true):,} examples are too many for labels"
        return accuracy, tally_mean(is_correct, note, is_undefined=True)
    rows, counts = np.arange(len(true)), np.zeros((len(true), 3, len(index)))
    counts[rows, 0, true] = 1
    is_label = answered < len(index)
    counts[rows[is_label], 1, answered[is_label]] = 1
    counts[rows, 2, true] = is_correct
    flat = counts.reshape(len(true), 3 * len(index))
    return accuracy, Tally(is_correct, flat, _compute_macro_f1)


def _compute_macro_f1(sums: Float64[np.ndarray, "B K"]) -> Float64[np.ndarray, " B"]:
    """Sums of references, answers and matches of every label → macro-F1."""
    supports, num_answers, matches = np.split(sums, 3, axis=1)
    totals = supports + num_answers
    is_present = totals > 0
    f1 = 2 * matches / np.where(is_present, totals, 1)
    value: Float64[np.ndarray, " B"] = f1.sum(axis=1) / np.maximum(1, is_present.sum(axis=1))
    return value


def count_labels(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], known_labels: Iterable[str] = ()
) -> LabelCounts:
    """The counts of the labels in the references. known_labels: further ones, such as those of the training data."""
    spellings = Counter((normalize_label(text), text.strip()) for texts in references for text in texts)
    keys = {key for key, _ in spellings}
    spellings.update((key, text.strip()) for text in known_labels if (key := normalize_label(text)) not in keys)
    shown = _choose_spellings(spellings)
    index = {key: i for i, key in enumerate(shown)}
    true, answered = _match(hypotheses, references, index)
    confusion = np.zeros((len(index), len(index) + 1), np.int64)
    np.add.at(confusion, (true, answered), 1)
    others = Counter(
        normalize_whitespace(text) for text, i in zip(hypotheses, answered.tolist(), strict=True) if i == len(index)
    )
    common = tuple(others.most_common(NUM_OTHERS))
    return LabelCounts(tuple(shown.values()), tuple(map(tuple, confusion.tolist())), common)


def _match(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], index: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(index of each example's label, index of its answer: the number of labels if it is none)"""
    true, answered = [], []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        key, keys = normalize_label(hypothesis), [normalize_label(text) for text in texts]
        true.append(index[key if key in keys else keys[0]])
        answered.append(index.get(key, len(index)))
    return np.array(true, np.int64), np.array(answered, np.int64)


def _choose_spellings(spellings: Counter[tuple[str, str]]) -> dict[str, str]:
    """What is compared → its most common spelling, sorted."""
    shown: dict[str, str] = {}
    for (key, text), _ in spellings.most_common():
        shown.setdefault(key, text)
    return dict(sorted(shown.items()))
