"""Answers from a file, looked up by a prompt's images and text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.types import PixelBox, Prediction, PredictionRow

MAX_LISTED_ROWS = 5

_Key = tuple[object, ...]
_Answer = tuple[str, bool, tuple[PixelBox, ...]]
"""(text, whether it was cut, boxes in pixels)"""


@dataclass(frozen=True)
class SavedAnswers:
    """The answers of the file `where`.

    by_path: (image paths, prompt) → answer. by_name: (image file names, prompt) → answer, for images that do not exist
    at their paths, since the file may come from another machine. Ambiguous names are left out. generation: how they
    were generated, in words; "unknown" if the file does not say. is_tuned: they are of a fine-tuned model.
    """

    where: str
    by_path: Mapping[_Key, _Answer]
    by_name: Mapping[_Key, _Answer]
    generation: str
    is_tuned: bool

    @classmethod
    def from_rows(cls, where: str, rows: Iterable[PredictionRow], *, use_base: bool = False) -> "SavedAnswers":
        """The answers of the fine-tuned model; of the base model with use_base, or if there are no others. Raises
        LorgnetteError for a mixture of both, and for two answers to one prompt."""
        answered = [row for row in rows if row.base is not None or row.tuned is not None]
        num_base = sum(row.tuned is None for row in answered)
        if not use_base and 0 < num_base < len(answered):
            message = (
                f"{num_base} of {len(answered)} answers are only the base model's, the others the fine-tuned one's"
            )
            raise LorgnetteError(message, where=where, hint="keep the rows of one model in a file")
        is_tuned = not use_base and num_base < len(answered)
        by_path: dict[_Key, _Answer] = {}
        paths_by_name: dict[_Key, set[_Key]] = {}
        for row in answered:
            text, is_cut, boxes = (
                (row.tuned, row.tuned_is_cut, row.tuned_boxes)
                if is_tuned
                else (row.base, row.base_is_cut, row.base_boxes)
            )
            if text is None:
                continue
            key = (*row.images, row.prompt)
            if by_path.setdefault(key, (text, is_cut, boxes))[0] != text:
                message = f"two answers to one question: {row.id} ({row.prompt!r})"
                raise LorgnetteError(message, where=where, hint="keep one of them")
            if row.images and not any(image.exists() for image in row.images):
                paths_by_name.setdefault(_build_name_key(row.images, row.prompt), set()).add(key)
        by_name = {name: by_path[next(iter(keys))] for name, keys in paths_by_name.items() if len(keys) == 1}
        generations = dict.fromkeys(row.generation or "unknown" for row in answered)
        return cls(where, by_path, by_name, " / ".join(generations), is_tuned)

    def lookup(self, prompts: Sequence[EvalPrompt]) -> list[Prediction]:
        """The answer to every prompt. Raises LorgnetteError if some are missing."""
        names = [_build_name_key(prompt.image_paths, prompt.text) for prompt in prompts]
        counts = Counter(names)
        answers = [
            self.by_path.get(_build_path_key(prompt), self.by_name.get(name) if counts[name] == 1 else None)
            for prompt, name in zip(prompts, names, strict=True)
        ]
        missing = [prompt for prompt, answer in zip(prompts, answers, strict=True) if answer is None]
        if missing:
            listed = "; ".join(f"{prompt.example.id} ({prompt.text!r})" for prompt in missing[:MAX_LISTED_ROWS])
            message = f"no answer to {len(missing)} of {len(prompts)} questions: {listed}"
            # Name the file's prompt for these images, if only the prompt differs.
            images = {prompt.image_paths for prompt in missing}
            file_prompts = {str(key[-1]) for key in self.by_path if key[:-1] in images}
            option = f" (in this file: --prompt {min(file_prompts)!r})" if len(file_prompts) == 1 else ""
            hint = f"answers are found by image and prompt{option}; answer this data with `lorgnette predict`"
            raise LorgnetteError(message, where=self.where, hint=hint)
        pairs = zip(prompts, (answer for answer in answers if answer is not None), strict=True)
        return [
            Prediction(prompt.example, text, is_complete=not is_cut, boxes=boxes)
            for prompt, (text, is_cut, boxes) in pairs
        ]

    def num_matched_by_name(self, prompts: Sequence[EvalPrompt]) -> int:
        """How many prompts are found by their images' file names alone."""
        return sum(_build_path_key(prompt) not in self.by_path for prompt in prompts)


def _build_path_key(prompt: EvalPrompt) -> _Key:
    return (*prompt.image_paths, prompt.text)


def _build_name_key(image_paths: Sequence[Path], prompt: str) -> _Key:
    return (*(image.name for image in image_paths), prompt)
