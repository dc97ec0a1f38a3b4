"""What is asked: every (picture, prompt) of a data file once, with all the answers that the data has to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lorgnette import data
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem, Turn


@dataclass(frozen=True, slots=True)
class Question:
    """example: the first of those that ask it. references: their answers, twice where the data has one
    twice, as the metrics count them."""

    example: Example
    references: tuple[str, ...]

    @property
    def pictures(self) -> tuple[Path, ...]:
        return tuple(picture.path for picture in self.example.pictures)

    @property
    def prompt(self) -> str:
        return "\n".join(turn.text for turn in self.example.prompt.turns if turn.role == "user")


def questions(examples: Iterable[Example]) -> list[Question]:
    """In the order of their first examples. Five captions of a picture are five references of one question."""
    asked: dict[tuple[Turn, ...], list[Example]] = {}
    for example in examples:
        asked.setdefault(example.prompt.turns, []).append(example)
    return [
        Question(same[0], tuple(example.reference for example in same if example.reference)) for same in asked.values()
    ]


def examples_of(
    source: Path, prompt: str, *, rows: int | None = None, images_from: Path | None = None
) -> list[Example]:
    """A picture or a folder of bare pictures asks `prompt`; data asks what it says. A broken row is an error here."""
    if data.speaks(source):
        read = data.read(source, prompt=prompt, rows=rows, images_from=images_from)
        seen = data.usable(read, on_bad_row="skip", where=source)
        examples, broken = seen.examples, seen.problems
    else:
        found = list(islice(data.pictures_of(source, prompt=prompt), rows))
        examples = [row for row in found if isinstance(row, Example)]
        broken = [row for row in found if isinstance(row, Problem)]
    if broken:
        refused = data.refusal(broken, len(examples) + len(broken))
        raise LorgnetteError(refused.what, remedy="mend or remove them, and ask again")
    return examples
