"""What a training is made from: the checkpoint, its encoder, and the encoded examples, looked over before a run
folder is made and before weights are read."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.gc_pause import uncollected
from lorgnette.hub.address import is_source
from lorgnette.metrics.held_out import demand_judge, judge_of, names_of
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.processing.processor import Encoder
from lorgnette.report.check_report import Parts
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import sha256
from lorgnette.resolve import data_table, model_folder, pictures_of
from lorgnette.types import Encoded, Example, PictureGrid, Problem

_MEND = "mend or remove the row"


@dataclass(frozen=True)
class Material:
    """examples are trained on, held_out never; problems are the rows left out (on_bad_row=skip)."""

    checkpoint: Checkpoint
    encoder: Encoder
    examples: list[Encoded]
    held_out: list[Encoded]
    problems: list[Problem]
    files: tuple[Path, ...]

    @classmethod
    def of(cls, settings: Settings, terminal: Terminal) -> "Material":
        """Raises LorgnetteError or UsageError for whatever would stop the training later."""
        judge_of(settings)
        names_of(settings.predict.metrics)
        table = data_table(settings, terminal)
        if table is None:
            raise UsageError("no data", where="data.path", remedy="name a file: data=captions.csv")
        files = tuple(dict.fromkeys(path for path in (table, settings.data.test) if path is not None))
        seen = _read(settings, table)
        if settings.data.test is not None:
            more = _read(settings, settings.data.test)
            rows, test, seen = seen.examples, more.examples, seen.joined(more)
        else:
            rows, test = data.parts(seen.examples, holdout=settings.data.holdout, split=settings.data.split)
        checkpoint = Checkpoint.at(model_folder(settings.model, terminal))
        encoder = Encoder.of_folder(checkpoint.folder, settings.encode, size_of=_size_of(seen.looks))
        problems = seen.problems
        found = len(problems)
        examples, held_out = (_encoded(encoder, part, problems) for part in (rows, test))
        _judge(problems[found:], len(rows) + len(test), settings.data.on_bad_row)
        _told(problems, terminal)
        _some(examples, table)
        demand_judge(settings, [e.example for e in held_out])
        for line in Parts.of([e.example for e in examples], [e.example for e in held_out]).advice:
            terminal.warn(line)
        return cls(checkpoint, encoder, examples, held_out, problems, files)

    @property
    def grids(self) -> list[PictureGrid]:
        """The distinct pictures."""
        return list(dict.fromkeys(grid for part in (self.examples, self.held_out) for e in part for grid in e.grids))

    @property
    def prompt(self) -> str:
        """What the examples ask most often: what to ask a picture that comes without words."""
        asked = Counter(e.example.turns[-2].text for e in self.examples if len(e.example.turns) > 1)
        return asked.most_common(1)[0][0] if asked else ""

    def without(
        self, failed: dict[PictureGrid, LorgnetteError], on_bad_row: data.OnBadRow, terminal: Terminal
    ) -> "Material":
        """The material without the rows whose pictures could not be decoded after all."""
        if not failed:
            return self
        problems = [
            Problem(e.example.source, e.example.row, f"{error.what} ({grid.picture.path})", error.remedy or _MEND)
            for part in (self.examples, self.held_out)
            for e in part
            for grid, error in [(grid, failed[grid]) for grid in e.grids if grid in failed][:1]
        ]
        _judge(problems, len(self.examples) + len(self.held_out), on_bad_row)
        _told(problems, terminal)
        examples, held_out = (
            [e for e in part if failed.keys().isdisjoint(e.grids)] for part in (self.examples, self.held_out)
        )
        _some(examples, self.files[0])
        return replace(self, examples=examples, held_out=held_out, problems=self.problems + problems)

    def demand_unchanged(self, manifest: Path) -> None:
        """Raises LorgnetteError where data or weights are others than the run was started with: a resumed run that
        saw other rows would not be the run it claims to be."""
        try:
            known = list(json.loads(manifest.read_text(encoding="utf-8"))["sha256"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LorgnetteError(
                f"manifest cannot be read: {error!r}", where=str(manifest), remedy="start a new run"
            ) from None
        now = [sha256(path) for path in self.files] + [self.checkpoint.fingerprint]
        if known != now:
            raise LorgnetteError(
                "data or weights have changed since the run was started",
                where=", ".join(map(str, self.files)),
                remedy="put them back as they were, or start a new run",
            )


@uncollected()
def _read(settings: Settings, path: Path) -> data.Survey:
    """The usable rows of a file. A table collected from a hub holds the rows that were asked for, and a test file is
    taken whole; others are cut here."""
    whole = is_source(str(settings.data.path)) or path == settings.data.test
    rows = data.read(
        path,
        prompt=settings.data.prompt,
        rows=None if whole else settings.data.rows,
        images_from=pictures_of(settings),
    )
    return data.usable(rows, on_bad_row=settings.data.on_bad_row, where=path)


def _size_of(looks: Mapping[Path, data.Look]) -> Callable[[Path], tuple[int, int]]:
    """Of the pictures that were looked at already, and of any other."""
    sizes = {path: look.size for path, look in looks.items()}
    return lambda path: sizes.get(path) or data.header(path)


@uncollected()
def _encoded(encoder: Encoder, examples: Sequence[Example], problems: list[Problem]) -> list[Encoded]:
    encoded = []
    for example in examples:
        try:
            encoded.append(encoder.encode(example))
        except LorgnetteError as error:
            problems.append(Problem(example.source, example.row, error.what, error.remedy or _MEND))
    return encoded


def _judge(problems: Sequence[Problem], total: int, on_bad_row: data.OnBadRow) -> None:
    if problems and on_bad_row == "error":
        raise data.refusal(problems, total)


def _told(problems: Sequence[Problem], terminal: Terminal) -> None:
    for problem in problems:
        terminal.warn(f"left out: {problem}")


def _some(examples: Sequence[Encoded], path: Path) -> None:
    if not examples:
        raise LorgnetteError("no example is left to train on", where=str(path), remedy="`lorgnette check` says why")
