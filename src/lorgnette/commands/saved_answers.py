"""Answers from a file, looked up by a prompt's images and text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.types import PredictionRow

MAX_LISTED_ROWS = 5

_Key = tuple[object, ...]


@dataclass(frozen=True)
class SavedAnswers:
    """The answers of the file `where`.

    by_path: (image paths, prompt) → answer. by_name: (image file names, prompt) → answer, for images that do not exist
    at their paths, since the file may come from another machine. Ambiguous names are left out.
    """

    where: str
    by_path: Mapping[_Key, str]
    by_name: Mapping[_Key, str]

    @classmethod
    def from_rows(cls, where: str, rows: Iterable[tuple[PredictionRow, str | None]]) -> "SavedAnswers":
        """rows: each with the answer to use. Raises LorgnetteError for two answers to one prompt."""
        by_path: dict[_Key, str] = {}
        paths_by_name: dict[_Key, set[_Key]] = {}
        for row, answer in rows:
            if answer is None:
                continue
            key = (*row.images, row.prompt)
            if by_path.setdefault(key, answer) != answer:
                message = f"two answers to one question: {row.id} ({row.prompt!r})"
                raise LorgnetteError(message, where=where, hint="keep one of them")
            if row.images and not any(image.exists() for image in row.images):
                paths_by_name.setdefault(_build_name_key(row.images, row.prompt), set()).add(key)
        by_name = {name: by_path[next(iter(keys))] for name, keys in paths_by_name.items() if len(keys) == 1}
        return cls(where, by_path, by_name)

    def lookup(self, prompts: Sequence[EvalPrompt]) -> list[str]:
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
        return [answer for answer in answers if answer is not None]

    def num_matched_by_name(self, prompts: Sequence[EvalPrompt]) -> int:
        """How many prompts are found by their images' file names alone."""
        return sum(_build_path_key(prompt) not in self.by_path for prompt in prompts)


def _build_path_key(prompt: EvalPrompt) -> _Key:
    return (*prompt.image_paths, prompt.text)


def _build_name_key(image_paths: Sequence[Path], prompt: str) -> _Key:
    return (*(image.name for image in image_paths), prompt)
