"""Examples → a data file that others read, and that reads back here as the same examples.

What a form cannot hold unchanged is refused row by row, never bent: every row is read back before anything is written.
Knows nothing about the forms but their names and what the table says of them.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.checks.data_report import OnBadRow, load_usable
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.data.formats import EXPORTERS, ExportFormat, conversations, csv, llama_factory, read_record
from lorgnette.data.row_location import DEFAULT_PROMPT, Row, RowLocation
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.types import Example, Image, Problem, Turn

DATASET_INFO = "dataset_info.json"
TextChunks = Callable[[], Iterator[str]]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was written, and what is worth knowing about it."""

    files: tuple[Path, ...]
    num_rows: int
    problems: tuple[Problem, ...]
    """Rows left out (on_bad_row="skip")."""
    num_trimmed: int
    """Rows that lost blanks around a lone picture's text, which "json" does not keep."""


def export(
    rows: Iterable[Row],
    out: Path,
    export_format: ExportFormat,
    *,
    prompt: str = DEFAULT_PROMPT,
    on_bad_row: OnBadRow = "error",
) -> ExportResult:
    """Write the file `out`; "llama-factory" also the dataset_info.json beside it that names it.

    A file that stands there with the same content is left alone; with other content, nothing at all is written.
    prompt: the one question that "csv", which has no place for it, is read with again.
    """
    out = Path(os.path.abspath(out))
    if out.suffix.lower() != EXPORTERS[export_format].suffix:
        raise UsageError(
            f"{export_format} is written to a {EXPORTERS[export_format].suffix} file",
            where=str(out),
            hint="name the file so",
        )
    seen = load_usable(filter_exportable(rows, export_format, prompt), on_bad_row=on_bad_row)
    kept = seen.examples
    files = write_files({out: kept}, export_format, prompt)
    return ExportResult(files, len(kept), tuple(seen.problems), count_trimmed(kept, export_format))


def filter_exportable(rows: Iterable[Row], export_format: ExportFormat, prompt: str) -> Iterator[Row]:
    """Rows as they are, with absolute paths; those that the form cannot hold become problems."""
    for row in rows:
        if isinstance(row, Problem):
            yield row
        else:
            yield from RowLocation(row.source, row.row, row.row).try_read(
                partial(_check_roundtrip, row, export_format, prompt)
            )


def count_trimmed(rows: Iterable[Example], export_format: ExportFormat) -> int:
    """How many of these rows the form holds but for blanks around a lone picture's text."""
    if export_format != "json":
        return 0
    return sum(conversations.trim_turns(row.turns) != row.turns for row in rows)


def _check_roundtrip(example: Example, export_format: ExportFormat, prompt: str) -> list[Example]:
    check_conversation(example.turns)
    form, meant = EXPORTERS[export_format], _normalize(example)
    record = form.to_record(meant, prompt)
    try:
        [back] = read_record(record, RowLocation(example.source, example.row, 1, prompt=prompt))
    except LorgnetteError as error:
        raise LorgnetteError(f"{_describe_loss(export_format)}: {error.message}", hint=_HINT) from error
    turns = conversations.trim_turns(meant.turns) if export_format == "json" else meant.turns
    if back.turns != turns or (form.has_ids and back.id != meant.id):
        raise LorgnetteError(_describe_loss(export_format), hint=_HINT)
    return [meant]


_HINT = "train on the source itself, which keeps it as it is, or take another form"


def _describe_loss(export_format: ExportFormat) -> str:
    return f"the {export_format} form cannot hold this row unchanged"


def _normalize(example: Example) -> Example:
    """As a reader would give it: absolute paths, neighbouring texts joined."""
    turns = tuple(
        Turn(turn.role, merge_parts(part if isinstance(part, str) else _make_absolute(part) for part in turn.parts))
        for turn in example.turns
    )
    return Example(example.id, turns, example.source, example.row)


def _make_absolute(image: Image) -> Image:
    return image if image.path.is_absolute() else Image(Path(os.path.abspath(image.path)))


def write_files(parts: Mapping[Path, Sequence[Example]], export_format: ExportFormat, prompt: str) -> tuple[Path, ...]:
    """Examples that `holdable` gave, a file for each part. All or nothing: every file is looked at before the first is
    written, and none takes its name before the last is complete."""
    contents: dict[Path, TextChunks] = {
        path: partial(_render, part, export_format, prompt) for path, part in parts.items()
    }
    if export_format == "llama-factory":
        info = json.dumps(llama_factory.build_dataset_info(list(parts)), ensure_ascii=False, indent=2) + "\n"
        contents[next(iter(parts)).with_name(DATASET_INFO)] = partial(iter, [info])
    standing = {path: _compare_existing(path, pieces) for path, pieces in contents.items()}
    if foreign := [str(path) for path, same in standing.items() if same is False]:
        raise UsageError(
            "these files exist already, with other content"
            if len(foreign) > 1
            else "exists already, with other content",
            where=", ".join(foreign),
            hint="remove them, or choose another folder",
        )
    with ExitStack() as all_or_nothing:
        for path in (path for path, same in standing.items() if same is None):
            beside = all_or_nothing.enter_context(atomic_write(path))
            with beside.open("w", encoding="utf-8", newline="") as file:
                file.writelines(contents[path]())
    return tuple(contents)


def _compare_existing(path: Path, pieces: TextChunks) -> bool | None:
    """Is this very content there? None: nothing is there. JSON may be laid out otherwise."""
    try:
        with path.open("rb") as file:
            same = all(there == piece for there, piece in _pair_chunks(file, pieces()))
        return same or (path.suffix == ".json" and json.loads(path.read_bytes()) == json.loads("".join(pieces())))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return False


def _pair_chunks(file: io.BufferedReader, pieces: Iterator[str]) -> Iterator[tuple[bytes | None, bytes | None]]:
    for piece in pieces:
        wanted = piece.encode()
        yield file.read(len(wanted)), wanted
    yield file.read(1), b""


def _render(part: Sequence[Example], export_format: ExportFormat, prompt: str) -> Iterator[str]:
    """The file's text, row by row."""
    form = EXPORTERS[export_format]
    found = (form.embed_images(form.to_record(example, prompt)) for example in part)
    if form.suffix == ".jsonl":
        return (json.dumps(record, ensure_ascii=False) + "\n" for record in found)
    return _render_csv(found) if form.suffix == ".csv" else _render_json_list(found)


def _render_json_list(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    """As `json.dumps(list, indent=2)` lays it out."""
    between = "[\n  "
    for record in found:
        yield between + json.dumps(record, ensure_ascii=False, indent=2).replace("\n", "\n  ")
        between = ",\n  "
    yield "\n]\n" if between == ",\n  " else "[]\n"


def _render_csv(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield csv.format_row(csv.COLUMNS)
    for record in found:
        yield csv.format_row([record[column] for column in csv.COLUMNS])
