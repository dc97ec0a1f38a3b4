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

from lorgnette.data.checks.data_report import OnBadRow, usable
from lorgnette.data.conversation import merged, must_be_learnable
from lorgnette.data.formats import EXPORTS, To, conversations, csv, examples, llama_factory
from lorgnette.data.rows import PROMPT, Place, Row
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import written_whole
from lorgnette.types import Example, Picture, Problem, Turn

INFO = "dataset_info.json"
Pieces = Callable[[], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what is worth knowing about it."""

    files: tuple[Path, ...]
    rows: int
    problems: tuple[Problem, ...]
    """Rows left out (on_bad_row="skip")."""
    tidied: int
    """Rows that lost blanks around a lone picture's text, which "json" does not keep."""


def export(rows: Iterable[Row], out: Path, to: To, *, prompt: str = PROMPT, on_bad_row: OnBadRow = "error") -> Exported:
    """Write the file `out`; "llama-factory" also the dataset_info.json beside it that names it.

    A file that stands there with the same content is left alone; with other content, nothing at all is written.
    prompt: the one question that "csv", which has no place for it, is read with again.
    """
    out = Path(os.path.abspath(out))
    if out.suffix.lower() != EXPORTS[to].suffix:
        raise UsageError(f"{to} is written to a {EXPORTS[to].suffix} file", where=str(out), remedy="name the file so")
    seen = usable(holdable(rows, to, prompt), on_bad_row=on_bad_row)
    kept = seen.examples
    files = write({out: kept}, to, prompt)
    return Exported(files, len(kept), tuple(seen.problems), tidied(kept, to))


def holdable(rows: Iterable[Row], to: To, prompt: str) -> Iterator[Row]:
    """Rows as they are, with absolute paths; those that the form cannot hold become problems."""
    for row in rows:
        if isinstance(row, Problem):
            yield row
        else:
            yield from Place(row.source, row.row, row.row).judged(partial(_held, row, to, prompt))


def tidied(rows: Iterable[Example], to: To) -> int:
    """How many of these rows the form holds but for blanks around a lone picture's text."""
    if to != "json":
        return 0
    return sum(conversations.tidied(row.turns) != row.turns for row in rows)


def _held(example: Example, to: To, prompt: str) -> list[Example]:
    must_be_learnable(example.turns)
    form, meant = EXPORTS[to], _plain(example)
    record = form.written(meant, prompt)
    try:
        [back] = examples(record, Place(example.source, example.row, 1, prompt=prompt))
    except LorgnetteError as error:
        raise LorgnetteError(f"{_bent(to)}: {error.what}", remedy=_OTHERWISE) from error
    turns = conversations.tidied(meant.turns) if to == "json" else meant.turns
    if back.turns != turns or (form.keeps_ids and back.id != meant.id):
        raise LorgnetteError(_bent(to), remedy=_OTHERWISE)
    return [meant]


_OTHERWISE = "train on the source itself, which keeps it as it is, or take another form"


def _bent(to: To) -> str:
    return f"the {to} form cannot hold this row unchanged"


def _plain(example: Example) -> Example:
    """As a reader would give it: absolute paths, neighbouring texts joined."""
    turns = tuple(
        Turn(turn.role, merged(part if isinstance(part, str) else _absolute(part) for part in turn.parts))
        for turn in example.turns
    )
    return Example(example.id, turns, example.source, example.row)


def _absolute(picture: Picture) -> Picture:
    return picture if picture.path.is_absolute() else Picture(Path(os.path.abspath(picture.path)))


def write(parts: Mapping[Path, Sequence[Example]], to: To, prompt: str) -> tuple[Path, ...]:
    """Examples that `holdable` gave, a file for each part. All or nothing: every file is looked at before the first is
    written, and none takes its name before the last is complete."""
    contents: dict[Path, Pieces] = {path: partial(_pieces, part, to, prompt) for path, part in parts.items()}
    if to == "llama-factory":
        info = json.dumps(llama_factory.info(list(parts)), ensure_ascii=False, indent=2) + "\n"
        contents[next(iter(parts)).with_name(INFO)] = partial(iter, [info])
    standing = {path: _stands(path, pieces) for path, pieces in contents.items()}
    if foreign := [str(path) for path, same in standing.items() if same is False]:
        raise UsageError(
            "these files exist already, with other content"
            if len(foreign) > 1
            else "exists already, with other content",
            where=", ".join(foreign),
            remedy="remove them, or choose another folder",
        )
    with ExitStack() as all_or_nothing:
        for path in (path for path, same in standing.items() if same is None):
            beside = all_or_nothing.enter_context(written_whole(path))
            with beside.open("w", encoding="utf-8", newline="") as file:
                file.writelines(contents[path]())
    return tuple(contents)


def _stands(path: Path, pieces: Pieces) -> bool | None:
    """Is this very content there? None: nothing is there. JSON may be laid out otherwise."""
    try:
        with path.open("rb") as file:
            same = all(there == piece for there, piece in _side_by_side(file, pieces()))
        return same or (path.suffix == ".json" and json.loads(path.read_bytes()) == json.loads("".join(pieces())))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return False


def _side_by_side(file: io.BufferedReader, pieces: Iterator[str]) -> Iterator[tuple[bytes | None, bytes | None]]:
    for piece in pieces:
        wanted = piece.encode()
        yield file.read(len(wanted)), wanted
    yield file.read(1), b""


def _pieces(part: Sequence[Example], to: To, prompt: str) -> Iterator[str]:
    """The file's text, row by row."""
    form = EXPORTS[to]
    found = (form.embedded(form.written(example, prompt)) for example in part)
    if form.suffix == ".jsonl":
        return (json.dumps(record, ensure_ascii=False) + "\n" for record in found)
    return _table(found) if form.suffix == ".csv" else _list(found)


def _list(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    """As `json.dumps(list, indent=2)` lays it out."""
    between = "[\n  "
    for record in found:
        yield between + json.dumps(record, ensure_ascii=False, indent=2).replace("\n", "\n  ")
        between = ",\n  "
    yield "\n]\n" if between == ",\n  " else "[]\n"


def _table(found: Iterator[dict[str, Any]]) -> Iterator[str]:
    yield csv.line(csv.COLUMNS)
    for record in found:
        yield csv.line([record[column] for column in csv.COLUMNS])
