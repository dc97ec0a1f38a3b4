"""The spine: what flows from room to room.

    Example → Encoded → PackedBatch → Prediction        (Score joins with the metrics)

Knows nothing about files' formats, models or devices. Shapes: T tokens of one packed row, P image tokens, R labels.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

Role = Literal["system", "user", "assistant"]
IGNORE_INDEX = -100
"""Label of a token on which no loss is taken (the value every Hugging Face model ignores)."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture where it lies; reading it is the data room's work."""

    path: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker's turn: texts and pictures in the order the model sees them."""

    role: Role
    parts: tuple[str | Image, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as a person would write it: no tokens, no model.

    row is the place in the source file that a person would look at: the line of a CSV or JSONL file, the 1-based
    item of a JSON list.
    """

    id: str
    turns: tuple[Turn, ...]
    source: Path
    row: int

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))

    @property
    def where(self) -> str:
        return f"{self.source}, row {self.row}"

    @property
    def reference(self) -> str:
        """The last assistant's text: what a prediction is held against ("" where there is none)."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "assistant"), "")

    @property
    def without_answer(self) -> "Example":
        """The same conversation up to the last assistant's turn: what a prediction starts from."""
        last = max((i for i, turn in enumerate(self.turns) if turn.role == "assistant"), default=len(self.turns))
        return Example(self.id, self.turns[:last], self.source, self.row)


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used: where it stands, what is wrong, what to do."""

    source: Path
    row: int
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.source}, row {self.row}: {self.message}; {self.hint}"


FindingKind = Literal[
    "unusable", "over-budget",  # training refuses to start
    "leak", "look-alike-leak", "copy", "look-alike", "repeated-row",
    "overlong-answer", "no-end", "control-text", "stray-marker", "odd-shape", "tiny",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """What somebody should know of a row before it is trained on. pictures: those to look at, at most two."""

    kind: FindingKind
    problem: Problem
    images: tuple[Path, ...] = ()

    @classmethod
    def for_example(cls, example: Example, kind: FindingKind, message: str, hint: str, *pictures: Path) -> "Finding":
        return cls(kind, Problem(example.source, example.row, message, hint), pictures)

    @property
    def is_blocking(self) -> bool:
        """Training refuses to start over it; everything else is for a person to judge."""
        return self.kind in ("unusable", "over-budget")


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """A picture as the vision tower gets it. t, h, w count patches; merge² patches make one image token."""

    image: Image
    t: int
    h: int
    w: int
    merge: int

    @property
    def num_tokens(self) -> int:
        return self.t * self.h * self.w // self.merge**2


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in tokens. labels[i] is tokens[i] where loss is taken on predicting it, else IGNORED.

    image_starts[n] is the row of the first token of the n-th picture, which has grids[n].
    """

    example: Example
    input_ids: Int32[np.ndarray, " T"]
    labels: Int32[np.ndarray, " T"]
    position_ids: Int32[np.ndarray, "3 T"]
    grids: tuple[ImageGrid, ...]
    image_starts: tuple[int, ...]

    @property
    def num_labels(self) -> int:
        return int((self.labels != IGNORE_INDEX).sum())


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass: several examples in one row, built on the host, one copy to the device, no read-back.

    Where examples share rows, they are a tree (encode/share.py), and its rows stand in the order in which a walk comes
    to them: behind a row are all rows that hang on it, and then those that do not.

    ends:         [T] behind the last row that hangs on each: row t sees the rows k ≤ t with t < ends[k], which are
                  those that it would see in each of its examples. Without sharing, its example's end.
    image_rows:   [P] rows whose embedding is an image feature.
    feature_rows: [P] row of each in the concatenated features of `grids`.
    grids:        the distinct pictures of this pass.
    label_rows:   [R] rows whose hidden state predicts targets[r], example by example; the loss is Σ weights ·
                  cross-entropy. A row shared by examples that go on differently stands here several times.
    """

    input_ids: Int32[np.ndarray, " T"]
    position_ids: Int32[np.ndarray, "3 T"]
    visible_until: Int32[np.ndarray, " T"]
    image_token_indices: Int32[np.ndarray, " P"]
    feature_indices: Int32[np.ndarray, " P"]
    label_indices: Int32[np.ndarray, " R"]
    targets: Int32[np.ndarray, " R"]
    label_weights: Float32[np.ndarray, " R"]
    grids: tuple[ImageGrid, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model said to one example. adapter names the run it came from; None is the untuned model."""

    example: Example
    text: str
    adapter: str | None = None
    is_complete: bool = field(default=True)
    """False: cut off at the longest length allowed, the model had not finished."""
