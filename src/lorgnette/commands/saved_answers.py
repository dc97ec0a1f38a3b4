"""Answers that were given before, in a file: found again by a question's pictures and prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.report.predictions import PredictionRow

MAX_LISTED_ROWS = 5

_Key = tuple[object, ...]


@dataclass(frozen=True)
class SavedAnswers:
    """where: the file. by_place: (pictures, prompt) → answer. by_name: (the pictures' file names, prompt) → answer, of
    pictures that are no longer where the file says, for it may come from another machine; where two share their names,
    neither is there."""

    where: str
    by_path: Mapping[_Key, str]
    by_name: Mapping[_Key, str]

    @classmethod
    def from_rows(cls, where: str, rows: Iterable[tuple[PredictionRow, str | None]]) -> "SavedAnswers":
        """given: rows with the answer that counts. Raises LorgnetteError for two answers to one question."""
        by_place: dict[_Key, str] = {}
        named: dict[_Key, set[_Key]] = {}
        for row, text in rows:
            if text is None:
                continue
            place = (*row.images, row.prompt)
            if by_place.setdefault(place, text) != text:
                raise LorgnetteError(
                    f"two answers to one question: {row.id} ({row.prompt!r})", where=where, hint="keep one of them"
                )
            if row.images and not any(picture.exists() for picture in row.images):
                named.setdefault(_build_name_key(row.images, row.prompt), set()).add(place)
        by_name = {name: by_place[next(iter(places))] for name, places in named.items() if len(places) == 1}
        return cls(where, by_place, by_name)

    def lookup(self, prompts: Sequence[EvalPrompt]) -> list[str]:
        """An answer to every question. Raises LorgnetteError where it lacks some."""
        found = self._find_answers(prompts)
        missing = [question for question, text in zip(prompts, found, strict=True) if text is None]
        if missing:
            named = "; ".join(f"{question.example.id} ({question.text!r})" for question in missing[:MAX_LISTED_ROWS])
            raise LorgnetteError(
                f"no answer to {len(missing)} of {len(prompts)} questions: {named}",
                where=self.where,
                hint=f"answers are found by picture and prompt{self._suggest_prompt(missing)}; have the same data answered: "
                "`lorgnette predict`",
            )
        return [text for text in found if text is not None]

    def num_matched_by_name(self, prompts: Sequence[EvalPrompt]) -> int:
        """How many are found by their pictures' names alone."""
        return sum(_build_path_key(question) not in self.by_path for question in prompts)

    def _find_answers(self, prompts: Sequence[EvalPrompt]) -> list[str | None]:
        names = [_build_name_key(question.image_paths, question.text) for question in prompts]
        times = Counter(names)
        return [
            self.by_path.get(_build_path_key(question), self.by_name.get(name) if times[name] == 1 else None)
            for question, name in zip(prompts, names, strict=True)
        ]

    def _suggest_prompt(self, missing: Sequence[EvalPrompt]) -> str:
        """What the file was asked about the same pictures, where only the prompt is another."""
        pictures = {question.image_paths for question in missing}
        others = {str(key[-1]) for key in self.by_path if key[:-1] in pictures}
        return f" (here the prompt was {sorted(others)[0]!r}: --prompt)" if len(others) == 1 else ""


def _build_path_key(prompt: EvalPrompt) -> _Key:
    return (*prompt.image_paths, prompt.text)


def _build_name_key(image_paths: Sequence[Path], prompt: str) -> _Key:
    return (*(picture.name for picture in image_paths), prompt)
