"""What a user gives `teach` beside the images: the labels that an answer must be, and answers from before."""

from collections.abc import Sequence
from pathlib import Path

from lorgnette import data
from lorgnette.data.row_location import EMPTY_CAPTION
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.parse import read_small_file
from lorgnette.report.console import Terminal
from lorgnette.teaching.answer_text import clean_answer, find_label, normalize_text
from lorgnette.teaching.images import ImageList
from lorgnette.types import Example

_MAX_LABELS = 1000
_MAX_BYTES = 1_000_000


def read_labels(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The labels of a text with commas, of a file with one a line, or of a list. Raises UsageError for fewer than two,
    and for two that are one label."""
    if given is None:
        return ()
    words = list(given) if not isinstance(given, str) else _read_lines(Path(given)) or given.split(",")
    labels = [label for label in map(normalize_text, words) if label]
    where = f"--labels {given if isinstance(given, str) else ','.join(given)}"[:200]
    for number, label in enumerate(labels):
        if other := find_label(label, labels[:number]):
            raise UsageError("a label comes twice", where=f"{other} and {label}", hint="name each once")
    if not 2 <= len(labels) <= _MAX_LABELS:
        hint = "write them with commas, as in cat,dog, or name a file with one a line"
        raise UsageError(f"2 to {_MAX_LABELS} labels are possible, not {len(labels)}", where=where, hint=hint)
    return tuple(labels)


def _read_lines(path: Path) -> list[str]:
    """The lines of a file, if there is one."""
    try:
        if not path.is_file():
            return []
    except (OSError, ValueError):  # many labels are too long for a name
        return []
    try:
        return read_small_file(path, _MAX_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError("not a text file in UTF-8", where=f"--labels {path}", hint="save it as UTF-8") from None


def read_given_answers(captions: Path, images: ImageList, labels: Sequence[str], terminal: Terminal) -> dict[str, str]:
    """Image's name → its answer, from a data file or folder in any format. Rows without an answer are left out.

    Raises LorgnetteError for rows that cannot be read, and UsageError for an image that is not taught, two answers to
    one image, another question, and an answer that is no label.
    """
    rows = [
        row
        for row in data.read(
            captions, prompt=images.prompt, images_from=images.folder,
            on_columns=lambda text: terminal.print(f"columns    {text}"),
        )
        if isinstance(row, Example) or row.fact != EMPTY_CAPTION
    ]  # fmt: skip
    scanned = data.load_usable(rows, on_bad_row="error", source=captions, needs_answer=False) if rows else None
    answers, places = dict[str, str](), dict[str, Example]()
    for row in scanned.examples if scanned else []:
        if not row.reference.strip():
            continue
        name = _find_name(row, images)
        _check_question(row, images)
        if name in places:
            where, hint = f"{row.where} and {places[name].where}", "keep one of them"
            raise UsageError(f"two answers to {name}", where=where, hint=hint)
        text = find_label(row.reference, labels) if labels else clean_answer(row.reference)
        if text is None:
            hint = f"correct it, or add it to --labels; they are {', '.join(labels[:8])}"
            raise UsageError(f"{row.reference!r} is no label", where=row.where, hint=hint)
        answers[name], places[name] = text, row
    if not answers:
        hint = "name a file with images and their answers, as image_path,caption"
        raise UsageError("no answer in this file", where=f"--captions {captions}", hint=hint)
    return answers


def _find_name(row: Example, images: ImageList) -> str:
    if len(row.images) != 1:
        raise UsageError(f"a row has {len(row.images)} images, not one", where=row.where, hint="remove the row")
    number = images.find_number(row.images[0].path)
    if number is None:
        where, hint = f"{row.where}: {row.images[0].path}", f"remove the row, or move the image into {images.source}"
        raise UsageError(f"an image is not in {images.source}", where=where, hint=hint)
    if number in images.broken:
        hint = "remove the row, or replace the image"
        raise LorgnetteError(f"{images.names[number]}: {images.broken[number]}", where=row.where, hint=hint)
    return images.names[number]


def _check_question(row: Example, images: ImageList) -> None:
    questions = [turn.text for turn in row.turns if turn.role == "user"]
    if questions != [images.prompt]:
        where = f"{row.where}: {', '.join(map(repr, questions))}"
        hint = f"the question here is {images.prompt!r}; --prompt asks another one"
        raise UsageError("an answer to another question", where=where, hint=hint)
