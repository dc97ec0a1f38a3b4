"""Prompts of an evaluation: every (images, prompt) of a data set once, with all its references."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorgnette.data import read_image_size
from lorgnette.data.boxes import convert_to_pixels
from lorgnette.types import Box, Example, Image, PixelBox, Prediction, PredictionRow, Turn


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A prompt and its references.

    example: the first one with this prompt. references: in the order of the data, duplicates included, as the metrics
    count them. reference_boxes: of each reference, in pixels; () if none has any.
    """

    example: Example
    references: tuple[str, ...]
    reference_boxes: tuple[tuple[PixelBox, ...], ...] = ()

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(image.path for image in self.example.images)

    @property
    def text(self) -> str:
        """The user's texts, with boxes in pixels: the same for every model."""
        example = self.example.without_answer()
        return "\n".join(
            "".join(
                replace(_convert_box(part, example), written=()).text if isinstance(part, Box) else part
                for part in turn.parts
                if not isinstance(part, Image)
            )
            for turn in example.turns
            if turn.role == "user"
        )

    def build_row(
        self, base: Prediction | None = None, tuned: Prediction | None = None, generation: str = ""
    ) -> PredictionRow:
        """The prompt with the answers of base model and fine-tuned model. generation: how they were generated."""
        return PredictionRow(
            self.example.id, self.image_paths, self.text, self.references,
            base=None if base is None else base.text, base_is_cut=base is not None and not base.is_complete,
            tuned=None if tuned is None else tuned.text, tuned_is_cut=tuned is not None and not tuned.is_complete,
            generation=generation, place=self.example.place,
            base_boxes=() if base is None else base.boxes, tuned_boxes=() if tuned is None else tuned.boxes,
            reference_boxes=self.reference_boxes,
        )  # fmt: skip


def group_by_prompt(examples: Iterable[Example]) -> list[EvalPrompt]:
    """Group examples by (images, prompt), in order of first occurrence. Five captions of an image are 5 references."""
    groups: dict[tuple[Turn, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.without_answer().turns, []).append(example)
    return [_build_prompt([example for example in group if example.reference], group[0]) for group in groups.values()]


def _build_prompt(answered: Sequence[Example], first: Example) -> EvalPrompt:
    boxes = tuple(
        tuple(
            PixelBox(tuple(map(float, _convert_box(box, example).corners)), box.label, box.image)
            for box in example.reference_boxes
        )
        for example in answered
    )
    return EvalPrompt(first, tuple(example.reference for example in answered), boxes if any(boxes) else ())


def _convert_box(box: Box, example: Example) -> Box:
    """The box in pixels. Raises LorgnetteError for an image that cannot be read."""
    if box.unit == "pixels" or not box.corners:
        return box
    return convert_to_pixels(box, read_image_size(example.images[box.image].path))
