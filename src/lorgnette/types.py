"""The data types in the order of the flow; `metrics` adds Score.

    Example → Encoded → PackedBatch → Prediction

Knows nothing about file formats and models. Shapes: T tokens of a packed micro-batch, P image tokens, R labels.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

Role = Literal["system", "user", "assistant"]
Capability = tuple[int, int]
"""A GPU's compute capability: (major, minor), as torch.cuda.get_device_capability returns it."""
TURING: Capability = (7, 5)
"""T4, RTX 20xx: the oldest GPUs that are supported."""
AMPERE: Capability = (8, 0)
"""The first GPUs with bfloat16, and the first for which torch has flash attention."""
IGNORE_INDEX = -100
"""Label of a token without loss (the value that every Hugging Face model ignores)."""


@dataclass(frozen=True, slots=True)
class Image:
    """The path of an image file; `data.images` reads it.

    written: the path in the data, if the file was found by its name alone. size: (width, height) as the data gives it;
    None if it does not.
    """

    path: Path
    written: str = field(default="", compare=False, repr=False)
    size: tuple[int, int] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ControlToken:
    """A control token, by its name. A text with the same characters is not one."""

    name: str


class BoxSource(NamedTuple):
    """A box as the data has it, for errors.

    name: "" is its number in the row. numbers: () are those of `Box.corners`. order and unit: of the numbers, in words.
    """

    name: str = ""
    numbers: tuple[float, ...] = ()
    order: str = "left, top, right, bottom"
    unit: str = "pixels of the image file as people see it, after its EXIF rotation"


@dataclass(frozen=True, slots=True)
class Box:
    """A box, a point, or only the name of an object: a part of a text.

    corners: left, top, right, bottom; x, y of a point; () for a name alone. image: its number among the example's
    images, from 0.
    unit: "pixels" of the image file as people see it, after EXIF orientation; "sides": shares of width and height, if
    the data says so. `Processor.write_boxes` turns all into pixels.
    written: as the model reads and writes it, from `Processor.write_boxes`; () before.
    """

    corners: tuple[float, ...]
    label: str = ""
    image: int = 0
    unit: Literal["pixels", "sides"] = "pixels"
    written: tuple[str | ControlToken, ...] = field(default=(), compare=False, repr=False)
    source: BoxSource = field(default=BoxSource(), compare=False, repr=False)

    @property
    def text(self) -> str:
        """As the model reads and writes it; before that is known: the label and the corners in the data's unit."""
        if self.written:
            return "".join(piece if isinstance(piece, str) else piece.name for piece in self.written)
        corners = f"[{', '.join(f'{value:g}' for value in self.corners)}]" if self.corners else ""
        return f"{self.label} {corners}".strip()


TurnPart = str | Image | Box


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: texts, boxes and images in the model's order.

    has_loss: False for an answer that the data marks as not to be learned; it is context for the turns after it.
    """

    role: Role
    parts: tuple[TurnPart, ...]
    has_loss: bool = True

    @property
    def text(self) -> str:
        """The texts and boxes."""
        texts = (part.text if isinstance(part, Box) else part for part in self.parts if not isinstance(part, Image))
        return "".join(texts)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes and points, without names alone."""
        return tuple(part for part in self.parts if isinstance(part, Box) and part.corners)


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation, without tokens and without a model.

    row: its place in the source file: the line of a CSV or JSONL file, or the 1-based item of a JSON list.
    unread_keys: keys of the row with content that was not read; a turn's key is written "messages[].name".
    is_trimmed: blanks around a text of the row were removed. sheet_row: the row that a spreadsheet shows for a row of a
    CSV, if cells with several lines make it another (0: the same).
    """

    id: str
    turns: tuple[Turn, ...]
    source: Path
    row: int
    unread_keys: tuple[str, ...] = field(default=(), compare=False)
    is_trimmed: bool = field(default=False, compare=False)
    sheet_row: int = field(default=0, compare=False)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Image))

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes and points of all turns, in order."""
        return tuple(box for turn in self.turns for box in turn.boxes)

    @property
    def where(self) -> str:
        return f"{self.source}, {self.place}"

    @property
    def place(self) -> str:
        """Its row in the source, for people."""
        return format_row(self.row, self.sheet_row)

    @property
    def reference(self) -> str:
        """The last answer with loss; a prediction is compared with it. "" if the user has the last word."""
        index = self._answer_index
        return "" if index == len(self.turns) else self.turns[index].text

    def without_answer(self) -> "Example":
        """The conversation before `reference`; a prediction continues it."""
        return replace(self, turns=self.turns[: self._answer_index])

    @property
    def reference_boxes(self) -> tuple[Box, ...]:
        """The boxes of `reference`."""
        index = self._answer_index
        return () if index == len(self.turns) else self.turns[index].boxes

    @property
    def _answer_index(self) -> int:
        """The turn that a prediction takes the place of; the end if the user has the last word."""
        end = len(self.turns)
        if not self.turns or self.turns[-1].role != "assistant":
            return end
        return max((i for i, turn in enumerate(self.turns) if turn.role == "assistant" and turn.has_loss), default=end)


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used: its place, what is wrong, and what to do.

    where: a place outside of the row that the message ends with in brackets, such as the path of an image. sheet_row:
    as in `Example`.
    """

    source: Path
    row: int
    message: str
    hint: str
    where: str = ""
    sheet_row: int = 0

    @property
    def place(self) -> str:
        """Its row in the source, for people."""
        return format_row(self.row, self.sheet_row)

    @property
    def fact(self) -> str:
        """The message without the place, which is equal for equal problems."""
        return self.message.removesuffix(f" ({self.where})")

    def __str__(self) -> str:
        return f"{self.source}, {self.place}: {self.message}; {self.hint}"


def format_row(row: int, sheet_row: int) -> str:
    """A row of a file for people. sheet_row: the row that a spreadsheet shows; 0: the same."""
    return f"row {row} (row {sheet_row} in a spreadsheet)" if sheet_row else f"row {row}"


FindingKind = Literal[
    "unusable", "over-budget",  # training refuses to start
    "leak", "look-alike-leak", "copy", "look-alike", "repeated-row",
    "unread-key", "trimmed", "blanks",
    "overlong-answer", "no-end", "text-box", "control-text", "stray-marker", "low-contrast", "odd-shape", "tiny",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """A remark about a row before training. images: a few images to look at."""

    kind: FindingKind
    problem: Problem
    images: tuple[Path, ...] = ()

    @classmethod
    def for_example(cls, example: Example, kind: FindingKind, message: str, hint: str, *images: Path) -> "Finding":
        """images: default: the first of the example's own."""
        images = images or tuple(image.path for image in example.images[:2])
        return cls(kind, Problem(example.source, example.row, message, hint, sheet_row=example.sheet_row), images)

    @property
    def is_blocking(self) -> bool:
        """Training does not start with it; all other findings are for the user to decide."""
        return self.kind in ("unusable", "over-budget")


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """The size of an image in patches of the vision tower: t, h, w. merge² patches become one image token."""

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
    """One tokenized example. labels[i] is input_ids[i] where that token has a loss, else IGNORE_INDEX.

    image_starts[n] is the index of the first token of image n, whose size is grids[n].
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
    """One micro-batch: several examples in one sequence. The host builds it; the device gets it in one copy.

    Examples that begin with the same tokens share them: the tokens form a prefix tree (processing/prefix_tree.py), in
    depth-first order, so that the descendants of a token are contiguous.

    visible_until:       [T] the attention mask, one integer per token: token k is visible to the queries q with
                         k ≤ q < visible_until[k]. Without sharing it is the end of the token's example.
    dropout_keys:        [T] each token's dropout masks are a hash of its key (processing/dropout_keys.py).
    image_token_indices: [P] tokens whose embedding is an image feature.
    feature_indices:     [P] row of each of them in the concatenated features of `grids`.
    grids:               the distinct images of this micro-batch.
    label_indices:       [R] tokens whose hidden state predicts targets[r], example by example. The loss is
                         Σ label_weights · cross-entropy. A shared token with several continuations
                         appears several times.
    """

    input_ids: Int32[np.ndarray, " T"]
    position_ids: Int32[np.ndarray, "3 T"]
    visible_until: Int32[np.ndarray, " T"]
    dropout_keys: Int32[np.ndarray, " T"]
    image_token_indices: Int32[np.ndarray, " P"]
    feature_indices: Int32[np.ndarray, " P"]
    label_indices: Int32[np.ndarray, " R"]
    targets: Int32[np.ndarray, " R"]
    label_weights: Float32[np.ndarray, " R"]
    grids: tuple[ImageGrid, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class PixelBox:
    """A box or a point of an answer or a reference, in pixels of the image file.

    corners, label, image: as in `Box`. score: the mean probability of its tokens; None if that is unknown.
    """

    corners: tuple[float, ...]
    label: str = ""
    image: int = 0
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a model to one example. adapter: the name of the run, or None for the base model.

    boxes: those in the text, in order; () also if they cannot be converted to pixels.
    """

    example: Example
    text: str
    adapter: str | None = None
    is_complete: bool = True
    """False: the answer reached the maximum length before an end token."""
    boxes: tuple[PixelBox, ...] = ()

    @property
    def shown_text(self) -> str:
        """The text for people; see `mark_cut`."""
        return mark_cut(self.text, is_cut=not self.is_complete)


BASE_MODEL = "base model"


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """A prompt's answers: base of the model before training, tuned of the fine-tuned model; None if not generated.

    references: every answer that the data has to this prompt on these images. base_is_cut, tuned_is_cut: the answer
    reached the maximum length before an end token. generation: how the answers were generated, in words; place: the
    row of the data, in words; both "" if unknown. base_boxes, tuned_boxes, reference_boxes: those in the texts, in
    pixels; of each reference.
    """

    id: str
    images: tuple[Path, ...]
    prompt: str
    references: tuple[str, ...]
    base: str | None = None
    tuned: str | None = None
    base_is_cut: bool = False
    tuned_is_cut: bool = False
    generation: str = ""
    place: str = ""
    before: str = BASE_MODEL
    """Whose answer `base` is: that of the base model, or of an adapter that the run continued, by name."""
    base_boxes: tuple[PixelBox, ...] = ()
    tuned_boxes: tuple[PixelBox, ...] = ()
    reference_boxes: tuple[tuple[PixelBox, ...], ...] = ()

    @property
    def answer(self) -> str:
        """The fine-tuned model's; the base model's if there is no other."""
        return next((text for text in (self.tuned, self.base) if text is not None), "")

    @property
    def answer_boxes(self) -> tuple[PixelBox, ...]:
        """The boxes of `answer`."""
        return self.base_boxes if self.tuned is None else self.tuned_boxes

    @property
    def shown_base(self) -> str | None:
        """The text for people; see `mark_cut`."""
        return self.base if self.base is None else mark_cut(self.base, is_cut=self.base_is_cut)

    @property
    def shown_tuned(self) -> str | None:
        return self.tuned if self.tuned is None else mark_cut(self.tuned, is_cut=self.tuned_is_cut)

    @property
    def caption(self) -> str:
        """The answers, one per line, for a tracker's image. The new one is first, since trackers cut long captions."""
        references = [("reference", text) for text in self.references]
        parts = [("after", self.shown_tuned), *references, ("before", self.shown_base)]
        return "\n".join(f"{name}: {text}" for name, text in parts if text is not None)


def mark_cut(text: str, *, is_cut: bool) -> str:
    """An answer as people see it: one that reached the maximum length ends with an ellipsis."""
    return f"{text} …" if is_cut else text
