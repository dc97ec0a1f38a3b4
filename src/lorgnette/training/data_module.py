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
from lorgnette.gc_pause import gc_paused
from lorgnette.hub.address import is_hub_address
from lorgnette.metrics.held_out import check_best_model_metric, expand_metric_names, get_best_model_metric
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.report.check_report import SplitSummary
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import compute_sha256
from lorgnette.resolve import resolve_data, resolve_images_folder, resolve_model
from lorgnette.types import Encoded, Example, ImageGrid, Problem

_FIX_ROW = "mend or remove the row"


@dataclass(frozen=True)
class TrainingData:
    """examples are trained on, held_out never; problems are the rows left out (on_bad_row=skip)."""

    checkpoint: BaseCheckpoint
    processor: Processor
    examples: list[Encoded]
    held_out: list[Encoded]
    problems: list[Problem]
    files: tuple[Path, ...]

    @classmethod
    def load(cls, settings: Settings, terminal: Terminal) -> "TrainingData":
        """Raises LorgnetteError or UsageError for whatever would stop the training later."""
        get_best_model_metric(settings)
        expand_metric_names(settings.predict.metrics)
        table = resolve_data(settings, terminal)
        if table is None:
            raise UsageError("no data", where="data.path", hint="name a file: data=captions.csv")
        files = tuple(dict.fromkeys(path for path in (table, settings.data.test) if path is not None))
        seen = _read_rows(settings, table)
        if settings.data.test is not None:
            more = _read_rows(settings, settings.data.test)
            rows, test, seen = seen.examples, more.examples, seen.merge(more)
        else:
            rows, test = data.train_test_split(seen.examples, holdout=settings.data.holdout, split=settings.data.split)
        checkpoint = BaseCheckpoint.from_folder(resolve_model(settings.model, terminal))
        encoder = Processor.from_folder(
            checkpoint.folder, settings.processor, read_size=_build_size_lookup(seen.image_infos)
        )
        problems = seen.problems
        found = len(problems)
        examples, held_out = (_encode_examples(encoder, part, problems) for part in (rows, test))
        _check_problems(problems[found:], len(rows) + len(test), settings.data.on_bad_row)
        _warn_skipped(problems, terminal)
        _check_not_empty(examples, table)
        check_best_model_metric(settings, [e.example for e in held_out])
        for line in SplitSummary.from_examples([e.example for e in examples], [e.example for e in held_out]).advice:
            terminal.warn(line)
        return cls(checkpoint, encoder, examples, held_out, problems, files)

    @property
    def grids(self) -> list[ImageGrid]:
        """The distinct pictures."""
        return list(dict.fromkeys(grid for part in (self.examples, self.held_out) for e in part for grid in e.grids))

    @property
    def most_common_prompt(self) -> str:
        """What the examples ask most often: what to ask a picture that comes without words."""
        asked = Counter(e.example.turns[-2].text for e in self.examples if len(e.example.turns) > 1)
        return asked.most_common(1)[0][0] if asked else ""

    def drop_images(
        self, errors: dict[ImageGrid, LorgnetteError], on_bad_row: data.OnBadRow, terminal: Terminal
    ) -> "TrainingData":
        """The material without the rows whose pictures could not be decoded after all."""
        if not errors:
            return self
        problems = [
            Problem(e.example.source, e.example.row, f"{error.message} ({grid.image.path})", error.hint or _FIX_ROW)
            for part in (self.examples, self.held_out)
            for e in part
            for grid, error in [(grid, errors[grid]) for grid in e.grids if grid in errors][:1]
        ]
        _check_problems(problems, len(self.examples) + len(self.held_out), on_bad_row)
        _warn_skipped(problems, terminal)
        examples, held_out = (
            [e for e in part if errors.keys().isdisjoint(e.grids)] for part in (self.examples, self.held_out)
        )
        _check_not_empty(examples, self.files[0])
        return replace(self, examples=examples, held_out=held_out, problems=self.problems + problems)

    def check_unchanged(self, manifest: Path) -> None:
        """Raises LorgnetteError where data or weights are others than the run was started with: a resumed run that
        saw other rows would not be the run it claims to be."""
        try:
            known = list(json.loads(manifest.read_text(encoding="utf-8"))["sha256"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LorgnetteError(
                f"manifest cannot be read: {error!r}", where=str(manifest), hint="start a new run"
            ) from None
        now = [compute_sha256(path) for path in self.files] + [self.checkpoint.fingerprint]
        if known != now:
            raise LorgnetteError(
                "data or weights have changed since the run was started",
                where=", ".join(map(str, self.files)),
                hint="put them back as they were, or start a new run",
            )


@gc_paused()
def _read_rows(settings: Settings, path: Path) -> data.ScanResult:
    """The usable rows of a file. A table collected from a hub holds the rows that were asked for, and a test file is
    taken whole; others are cut here."""
    whole = is_hub_address(str(settings.data.path)) or path == settings.data.test
    rows = data.read(
        path,
        prompt=settings.data.prompt,
        max_rows=None if whole else settings.data.max_rows,
        images_from=resolve_images_folder(settings),
    )
    return data.load_usable(rows, on_bad_row=settings.data.on_bad_row, source=path)


def _build_size_lookup(looks: Mapping[Path, data.ImageInfo]) -> Callable[[Path], tuple[int, int]]:
    """Of the pictures that were looked at already, and of any other."""
    sizes = {path: look.size for path, look in looks.items()}
    return lambda path: sizes.get(path) or data.read_image_size(path)


@gc_paused()
def _encode_examples(encoder: Processor, examples: Sequence[Example], problems: list[Problem]) -> list[Encoded]:
    encoded = []
    for example in examples:
        try:
            encoded.append(encoder.encode(example))
        except LorgnetteError as error:
            problems.append(Problem(example.source, example.row, error.message, error.hint or _FIX_ROW))
    return encoded


def _check_problems(problems: Sequence[Problem], total: int, on_bad_row: data.OnBadRow) -> None:
    if problems and on_bad_row == "error":
        raise data.build_refusal(problems, total)


def _warn_skipped(problems: Sequence[Problem], terminal: Terminal) -> None:
    for problem in problems:
        terminal.warn(f"left out: {problem}")


def _check_not_empty(examples: Sequence[Encoded], path: Path) -> None:
    if not examples:
        raise LorgnetteError("no example is left to train on", where=str(path), hint="`lorgnette check` says why")
