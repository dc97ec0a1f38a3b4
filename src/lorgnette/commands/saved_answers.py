"""Answers that were given before, in a file: found again by a question's pictures and prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.metrics.eval_prompts import Question
from lorgnette.report.predictions import PredictionRow

ROWS_NAMED = 5

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Said:
    """where: the file. by_place: (pictures, prompt) → answer. by_name: (the pictures' file names, prompt) → answer, of
    pictures that are no longer where the file says, for it may come from another machine; where two share their names,
    neither is there."""

    where: str
    by_place: Mapping[_Key, str]
    by_name: Mapping[_Key, str]

    @classmethod
    def of(cls, where: str, given: Iterable[tuple[PredictionRow, str | None]]) -> "Said":
        """given: rows with the answer that counts. Raises LorgnetteError for two answers to one question."""
        by_place: dict[_Key, str] = {}
        named: dict[_Key, set[_Key]] = {}
        for row, text in given:
            if text is None:
                continue
            place = (*row.pictures, row.prompt)
            if by_place.setdefault(place, text) != text:
                raise LorgnetteError(
                    f"two answers to one question: {row.id} ({row.prompt!r})", where=where, remedy="keep one of them"
                )
            if row.pictures and not any(picture.exists() for picture in row.pictures):
                named.setdefault(_named(row.pictures, row.prompt), set()).add(place)
        by_name = {name: by_place[next(iter(places))] for name, places in named.items() if len(places) == 1}
        return cls(where, by_place, by_name)

    def to(self, asked: Sequence[Question]) -> list[str]:
        """An answer to every question. Raises LorgnetteError where it lacks some."""
        found = self._found(asked)
        missing = [question for question, text in zip(asked, found, strict=True) if text is None]
        if missing:
            named = "; ".join(f"{question.example.id} ({question.prompt!r})" for question in missing[:ROWS_NAMED])
            raise LorgnetteError(
                f"no answer to {len(missing)} of {len(asked)} questions: {named}",
                where=self.where,
                remedy=f"answers are found by picture and prompt{self._prompts(missing)}; have the same data answered: "
                "`lorgnette predict`",
            )
        return [text for text in found if text is not None]

    def moved(self, asked: Sequence[Question]) -> int:
        """How many are found by their pictures' names alone."""
        return sum(_place(question) not in self.by_place for question in asked)

    def _found(self, asked: Sequence[Question]) -> list[str | None]:
        names = [_named(question.pictures, question.prompt) for question in asked]
        times = Counter(names)
        return [
            self.by_place.get(_place(question), self.by_name.get(name) if times[name] == 1 else None)
            for question, name in zip(asked, names, strict=True)
        ]

    def _prompts(self, missing: Sequence[Question]) -> str:
        """What the file was asked about the same pictures, where only the prompt is another."""
        pictures = {question.pictures for question in missing}
        others = {str(key[-1]) for key in self.by_place if key[:-1] in pictures}
        return f" (here the prompt was {sorted(others)[0]!r}: --prompt)" if len(others) == 1 else ""


def _place(question: Question) -> _Key:
    return (*question.pictures, question.prompt)


def _named(pictures: Sequence[Path], prompt: str) -> _Key:
    return (*(picture.name for picture in pictures), prompt)
