"""What is asked: every (picture, prompt) of a data file once, with all the answers that the data has to it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lorgnette import data
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem, Turn


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """example: the first of those that ask it. references: their answers, twice where the data has one
    twice, as the metrics count them."""

    example: Example
    references: tuple[str, ...]

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(picture.path for picture in self.example.images)

    @property
    def text(self) -> str:
        return "\n".join(turn.text for turn in self.example.without_answer.turns if turn.role == "user")


def group_by_prompt(examples: Iterable[Example]) -> list[EvalPrompt]:
    """In the order of their first examples. Five captions of a picture are five references of one question."""
    asked: dict[tuple[Turn, ...], list[Example]] = {}
    for example in examples:
        asked.setdefault(example.without_answer.turns, []).append(example)
    return [
        EvalPrompt(same[0], tuple(example.reference for example in same if example.reference))
        for same in asked.values()
    ]


def read_examples(
    source: Path, prompt: str, *, max_rows: int | None = None, images_from: Path | None = None
) -> list[Example]:
    """A picture or a folder of bare pictures asks `prompt`; data asks what it says. A broken row is an error here."""
    if data.is_dataset(source):
        read = data.read(source, prompt=prompt, max_rows=max_rows, images_from=images_from)
        seen = data.load_usable(read, on_bad_row="skip", source=source)
        examples, broken = seen.examples, seen.problems
    else:
        found = list(islice(data.read_images(source, prompt=prompt), max_rows))
        examples = [row for row in found if isinstance(row, Example)]
        broken = [row for row in found if isinstance(row, Problem)]
    if broken:
        refused = data.build_refusal(broken, len(examples) + len(broken))
        raise LorgnetteError(refused.message, hint="mend or remove them, and ask again")
    return examples
