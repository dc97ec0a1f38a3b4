"""Finds what is in a data set more than once: rows, identical image files, near-duplicate images.

An image that is in both parts is a leak: the test then asks for something that was trained on. Each finding is at the
later row and names the earlier one. Knows nothing about data formats, tokens or models.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lorgnette.data.checks.near_duplicates import near_duplicate_groups
from lorgnette.types import Example, Finding, FindingKind, Turn

_Files = Mapping[Path, Path]
_Rows = Mapping[Path, Example]
_KEEP_ONE = "keep one of them, or put all rows with the image into one part"


def find_duplicates(
    train: Sequence[Example], test: Sequence[Example], identical_files: _Files, signatures: Mapping[Path, bytes]
) -> Iterator[Finding]:
    """Findings in both parts.

    identical_files: `map_identical_files` of their images. signatures: of the images to compare by their looks.
    """
    train_rows, test_rows = _map_first_rows(train), _map_first_rows(test)
    first_rows = test_rows | train_rows
    # Repeated rows: images and texts are equal, ids do not matter.
    first: dict[tuple[Turn, ...], Example] = {}
    for row in (*train, *test):
        if (earlier := first.setdefault(row.turns, row)) is not row:
            message = f"duplicate of {_format_row(earlier, row)} (same images, same text)"
            yield Finding.for_example(row, "repeated-row", message, "remove one of them")
    yield from _find_leaks(train, test, identical_files)
    # Each path → the path, as a row has it, of the first file with the same bytes.
    first_paths: dict[Path, Path] = {}
    originals = {path: first_paths.setdefault(f, path) for path, f in identical_files.items() if path in first_rows}
    # Other files with the same bytes in the same part; across the parts it is a leak already.
    for path, original in originals.items():
        if path != original and (path in train_rows) == (original in train_rows):
            row = first_rows[path]
            message = f"{path.name} is byte for byte {_format_image(original, first_rows[original], row)}"
            yield Finding.for_example(row, "copy", message, "use one file in both rows, or remove one", path, original)
    yield from _find_near_duplicates(originals, train_rows, first_rows, signatures)


def _find_leaks(train: Sequence[Example], test: Sequence[Example], identical_files: _Files) -> Iterator[Finding]:
    train_rows = {identical_files[image.path]: row for row in reversed(train) for image in row.images}
    for row in test:
        for path in dict.fromkeys(image.path for image in row.images):
            if earlier := train_rows.get(identical_files[path]):
                message = f"{path.name} is held out, but also in the training part: {_format_row(earlier, row)}"
                yield Finding.for_example(row, "leak", message, _KEEP_ONE, path)


def _find_near_duplicates(
    originals: _Files, train_rows: _Rows, first_rows: _Rows, signatures: Mapping[Path, bytes]
) -> Iterator[Finding]:
    """Among files with different bytes. A training image represents its group if it has one, so that leaks show."""
    in_training = {originals[path] for path in train_rows}
    paths = [path for path, original in originals.items() if path == original and path in signatures]
    for indices in near_duplicate_groups([signatures[path] for path in paths]):
        first, *others = sorted((paths[index] for index in indices), key=lambda path: path not in in_training)
        for path in others:
            is_leak = first in in_training and path not in in_training
            kind: FindingKind = "look-alike-leak" if is_leak else "look-alike"
            row = first_rows[path]
            held_out = " is held out and" if is_leak else ""
            message = f"{path.name}{held_out} looks like {_format_image(first, first_rows[first], row)}"
            hint = _KEEP_ONE if is_leak else "look at both; keep one"
            yield Finding.for_example(row, kind, message, hint, path, first)


def _map_first_rows(rows: Sequence[Example]) -> dict[Path, Example]:
    """Image path → the first row with it."""
    return {image.path: row for row in reversed(rows) for image in row.images}


def _format_row(earlier: Example, row: Example) -> str:
    return earlier.place if earlier.source == row.source else earlier.where


def _format_image(path: Path, earlier: Example, row: Example) -> str:
    return f"{path.name} of {_format_row(earlier, row)}" if earlier is not row else f"{path.name} of the same row"
