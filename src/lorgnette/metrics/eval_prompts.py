"""Prompts of an evaluation: every (images, prompt) of a data set once, with all its references."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorgnette.types import Example, Prediction, PredictionRow, Turn


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """A prompt and its references.

    example: the first one with this prompt. references: in the order of the data, duplicates included, as the metrics
    count them.
    """

    example: Example
    references: tuple[str, ...]

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(image.path for image in self.example.images)

    @property
    def text(self) -> str:
        """The user's texts."""
        return "\n".join(turn.text for turn in self.example.without_answer().turns if turn.role == "user")

    def build_row(
        self, base: Prediction | None = None, tuned: Prediction | None = None, generation: str = ""
    ) -> PredictionRow:
        """The prompt with the answers of base model and fine-tuned model. generation: how they were generated."""
        return PredictionRow(
            self.example.id, self.image_paths, self.text, self.references,
            base=None if base is None else base.text, base_is_cut=base is not None and not base.is_complete,
            tuned=None if tuned is None else tuned.text, tuned_is_cut=tuned is not None and not tuned.is_complete,
            generation=generation, place=self.example.place,
        )  # fmt: skip


def group_by_prompt(examples: Iterable[Example]) -> list[EvalPrompt]:
    """Group examples by (images, prompt), in order of first occurrence. Five captions of an image are 5 references."""
    groups: dict[tuple[Turn, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(example.without_answer().turns, []).append(example)
    return [
        EvalPrompt(group[0], tuple(example.reference for example in group if example.reference))
        for group in groups.values()
    ]
