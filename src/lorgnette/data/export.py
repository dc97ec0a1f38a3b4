"""Writes examples to data files of other projects, and prepares the tutorial's data_vl.json with its two parts.

A row that a format cannot hold unchanged is refused, never altered: every row is read back before anything is written.
Knows nothing about the formats except their names and `EXPORTERS`, nor about downloads, tokens or models.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from lorgnette.config import DEFAULT_PROMPT
from lorgnette.data.box_notation import TextBoxUnit
from lorgnette.data.checks.data_report import OnBadRow, load_usable
from lorgnette.data.conversation import check_conversation, merge_parts
from lorgnette.data.dataset import read
from lorgnette.data.formats import EXPORTERS, ExportFormat, conversations, csv, llama_factory, read_record
from lorgnette.data.row_location import RECOGNIZED, ColumnChoice, Row, RowLocation
from lorgnette.data.splits import Holdout, Split, count_shared_images, train_test_split
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_write
from lorgnette.io.parse import parse_json
from lorgnette.types import Example, Finding, Image, Problem, TurnPart

DATASET_INFO = "dataset_info.json"
TextChunks = Callable[[], Iterator[str]]
_HINT = "train on the source itself, which keeps it as it is, or use another format"


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The written files and their rows."""

    files: tuple[Path, ...]
    num_rows: int
    problems: tuple[Problem, ...]
    """Rows left out (on_bad_row="skip")."""
    num_trimmed: int
    """Rows that lost the spaces around the text of a single image, which "json" does not keep."""


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """The written files and their rows."""

    all_path: Path
    train_path: Path
    test_path: Path
    num_train: int
    num_test: int
    problems: tuple[Problem, ...]
    """Rows left out (on_bad_row="skip")."""
    num_shared_images: int
    """Images in both parts: 0 unless split="tail"."""
    num_trimmed: int
    """As in `ExportResult`."""
    remarks: tuple[Finding, ...] = ()
    """What many rows have in common, such as keys that are not read."""


def export(
    rows: Iterable[Row],
    out: Path,
    export_format: ExportFormat,
    *,
    prompt: str = DEFAULT_PROMPT,
    on_bad_row: OnBadRow = "error",
) -> ExportResult:
    """Write the file `out`; "llama-factory" also writes the dataset_info.json beside it that names it.

    A file with the same content is left as it is; if a file has other content, nothing is written (UsageError).
    prompt: the one question that "csv", which has no column for it, is read with again.
    """
    out = Path(os.path.abspath(out))
    suffix = EXPORTERS[export_format].suffix
    if out.suffix.lower() != suffix:
        raise UsageError(f"{export_format} needs a {suffix} file", where=str(out), hint=f"name the file …{suffix}")
    result = load_usable(filter_exportable(rows, export_format, prompt), on_bad_row=on_bad_row)
    examples = result.examples
    files = write_files({out: examples}, export_format, prompt)
    return ExportResult(files, len(examples), tuple(result.problems), count_trimmed(examples, export_format))


def prepare(
    source: Path,
    out: Path,
    *,
    prompt: str = DEFAULT_PROMPT,
    holdout: Holdout = "auto",
    split: Split = "image",
    max_rows: int | None = None,
    on_bad_row: OnBadRow = "error",
    export_format: ExportFormat = "json",
    sample: int | None = None,
    seed: int = 0,
    name: str | None = None,
    images_from: Path | None = None,
    images_to: Path | None = None,
    columns: ColumnChoice = RECOGNIZED,
    on_columns: Callable[[str], None] = lambda text: None,
    text_boxes: TextBoxUnit | None = None,
) -> PrepareResult:
    """Write data_vl, data_vl_train and data_vl_test into the folder `out`, with absolute image paths.

    `read` describes the options that select rows and images, and text_boxes, `train_test_split` the two splits. Images
    inside the source are extracted to `out`/images unless images_to is given. Captions keep the blanks around them. A
    file with the same content is left as it is; if a file has other content, nothing is written (UsageError).
    """
    rows = read(
        source, prompt=prompt, max_rows=max_rows, sample=sample, seed=seed, name=name, images_from=images_from,
        images_to=images_to or out / "images", trim=False, columns=columns, on_columns=on_columns,
        text_boxes=text_boxes,
    )  # fmt: skip
    result = load_usable(filter_exportable(rows, export_format, prompt), on_bad_row=on_bad_row, source=source)
    train, test = train_test_split(result.examples, holdout=holdout, split=split)
    suffix = EXPORTERS[export_format].suffix
    all_path, train_path, test_path = (out / f"data_vl{part}{suffix}" for part in ("", "_train", "_test"))
    write_files({all_path: result.examples, train_path: train, test_path: test}, export_format, prompt)
    num_shared = count_shared_images(train, test) if split == "tail" else 0
    num_trimmed = count_trimmed(result.examples, export_format)
    paths, problems, remarks = (all_path, train_path, test_path), tuple(result.problems), tuple(result.remarks)
    return PrepareResult(*paths, len(train), len(test), problems, num_shared, num_trimmed, remarks)


def filter_exportable(rows: Iterable[Row], export_format: ExportFormat, prompt: str) -> Iterator[Row]:
    """The rows with absolute image paths; those that the format cannot hold become problems."""
    for row in rows:
        if isinstance(row, Problem):
            yield row
        else:
            yield from RowLocation.from_example(row).try_read(partial(_check_roundtrip, row, export_format, prompt))


def count_trimmed(rows: Iterable[Example], export_format: ExportFormat) -> int:
    """How many rows lose the spaces around the text of a single image in this format."""
    return sum(conversations.trim_turns(row.turns) != row.turns for row in rows) if export_format == "json" else 0


def _check_roundtrip(example: Example, export_format: ExportFormat, prompt: str) -> list[Example]:
    check_conversation(example.turns)
    exporter, normalized = EXPORTERS[export_format], _normalize(example)
    record = exporter.to_record(normalized, prompt)
    loss = f"the {export_format} format cannot hold this row unchanged"
    try:
        [restored] = read_record(record, RowLocation(example.source, example.row, 1, prompt=prompt, trim=False))
    except LorgnetteError as error:
        raise LorgnetteError(f"{loss}: {error.message}", hint=_HINT) from error
    turns = conversations.trim_turns(normalized.turns) if export_format == "json" else normalized.turns
    if restored.turns != turns or (exporter.has_ids and restored.id != normalized.id):
        raise LorgnetteError(loss, hint=_HINT)
    return [normalized]


def _normalize(example: Example) -> Example:
    """The example as a reader returns it: absolute paths, neighboring texts joined."""

    def normalize_part(part: TurnPart) -> TurnPart:
        if isinstance(part, Image) and not part.path.is_absolute():
            return replace(part, path=Path(os.path.abspath(part.path)))
        return part

    turns = tuple(replace(turn, parts=merge_parts(map(normalize_part, turn.parts))) for turn in example.turns)
    return replace(example, turns=turns)


def write_files(parts: Mapping[Path, Sequence[Example]], export_format: ExportFormat, prompt: str) -> tuple[Path, ...]:
    """Write a file for each part of the examples that `filter_exportable` let through.

    All or nothing: every existing file is compared before the first is written, and no file gets its name before the
    last is complete.
    """
    contents: dict[Path, TextChunks]
    contents = {path: partial(_render, part, export_format, prompt) for path, part in parts.items()}
    if export_format == "llama-factory":
        info = json.dumps(llama_factory.build_dataset_info(list(parts)), ensure_ascii=False, indent=2) + "\n"
        contents[next(iter(parts)).with_name(DATASET_INFO)] = partial(iter, [info])
    matches = {path: _compare_existing(path, chunks) for path, chunks in contents.items()}
    if conflicts := [str(path) for path, is_same in matches.items() if is_same is False]:
        message = "these files exist with other content" if len(conflicts) > 1 else "exists with other content"
        raise UsageError(message, where=", ".join(conflicts), hint="remove them, or choose another folder")
    with ExitStack() as all_or_nothing:
        for path in (path for path, is_same in matches.items() if is_same is None):
            temporary = all_or_nothing.enter_context(atomic_write(path))
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines(contents[path]())
    return tuple(contents)


def _compare_existing(path: Path, chunks: TextChunks) -> bool | None:
    """True if the file has this content, None if there is no file. The layout of JSON does not matter."""
    try:
        with path.open("rb") as file:
            is_same = all(file.read(len(chunk)) == chunk for chunk in map(str.encode, chunks())) and not file.read(1)
        return is_same or (path.suffix == ".json" and parse_json(path.read_bytes()) == parse_json("".join(chunks())))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, LorgnetteError):
        return False


def _render(part: Sequence[Example], export_format: ExportFormat, prompt: str) -> Iterator[str]:
    """The file's text, row by row."""
    exporter = EXPORTERS[export_format]
    records = (exporter.embed_images(exporter.to_record(example, prompt)) for example in part)
    if exporter.suffix == ".jsonl":
        yield from (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    elif exporter.suffix == ".csv":
        rows = ([record[column] for column in csv.COLUMNS] for record in records)
        yield from map(csv.format_row, chain([csv.COLUMNS], rows))
    else:
        # The text of `json.dumps(list, indent=2)`.
        texts = (json.dumps(record, ensure_ascii=False, indent=2).replace("\n", "\n  ") for record in records)
        for number, text in enumerate(texts):
            yield f"{',' if number else '['}\n  {text}"
        yield "\n]\n" if part else "[]\n"
