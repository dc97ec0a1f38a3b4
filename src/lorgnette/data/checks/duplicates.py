"""What stands in a data set more than once: rows, pictures by their bytes, pictures by their looks; and what stands in
both parts, so that the test asks for what was trained.

Each finding is at the later row and names the earlier one. Knows nothing about forms, tokens or models.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lorgnette.data.checks import near_duplicates
from lorgnette.types import Example, Finding, FindingKind, Turn

_KEEP_ONE = "keep one of them, or put all of the picture's rows into one part"


def find_duplicates(
    train: Sequence[Example],
    test: Sequence[Example],
    identical_files: Mapping[Path, Path],
    signatures: Mapping[Path, bytes],
) -> Iterator[Finding]:
    """Findings over both parts. same: `identities` of their pictures. sketches: of those whose looks are compared."""
    trained, tested = _map_first_rows(train), _map_first_rows(test)
    first = tested | trained
    yield from _find_repeated_rows((*train, *test))
    yield from _find_leaks(test, identical_files, _map_first_by_content(identical_files, trained))
    yield from _find_copies(identical_files, trained, first)
    yield from _find_near_duplicates(identical_files, trained, first, signatures)


def _find_repeated_rows(rows: Sequence[Example]) -> Iterator[Finding]:
    """By what is shown and said; what it is called and where it stands do not matter."""
    seen: dict[tuple[Turn, ...], Example] = {}
    for row in rows:
        earlier = seen.setdefault(row.turns, row)
        if earlier is not row:
            said = f"shows and says the same as {_format_row(earlier, row)}"
            yield Finding.for_example(row, "repeated-row", said, "remove one of them")


def _find_leaks(
    test: Sequence[Example], identical_files: Mapping[Path, Path], trained: Mapping[Path, Example]
) -> Iterator[Finding]:
    for row in test:
        for path in dict.fromkeys(picture.path for picture in row.images):
            if earlier := trained.get(identical_files[path]):
                said = f"{path.name} is held out, and trained on in {_format_row(earlier, row)}"
                yield Finding.for_example(row, "leak", said, _KEEP_ONE, path)


def _find_copies(
    identical_files: Mapping[Path, Path], trained: Mapping[Path, Example], first: Mapping[Path, Example]
) -> Iterator[Finding]:
    """Another file of the same bytes, in the same part: across parts it is a leak already."""
    for path, original in _map_originals(identical_files, first).items():
        if path != original and (path in trained) == (original in trained):
            row = first[path]
            said = f"{path.name} is, byte for byte, {_format_image(original, first[original], row)}"
            yield Finding.for_example(row, "copy", said, "name one file in both rows, or remove one", path, original)


def _find_near_duplicates(
    identical_files: Mapping[Path, Path],
    trained: Mapping[Path, Example],
    first: Mapping[Path, Example],
    signatures: Mapping[Path, bytes],
) -> Iterator[Finding]:
    """Among files of different bytes. One that is trained on speaks for its group, so that a leak is seen as one."""
    originals = _map_originals(identical_files, first)
    in_training = {originals[path] for path in trained}
    paths = [path for path, original in originals.items() if path == original and path in signatures]
    for places in near_duplicates.near_duplicate_groups([signatures[path] for path in paths]):
        group = sorted((paths[place] for place in places), key=lambda path: path not in in_training)
        for path in group[1:]:
            leak = group[0] in in_training and path not in in_training
            kind: FindingKind = "look-alike-leak" if leak else "look-alike"
            row = first[path]
            held = " is held out and" if leak else ""
            said = f"{path.name}{held} looks like {_format_image(group[0], first[group[0]], row)}"
            yield Finding.for_example(row, kind, said, _KEEP_ONE if leak else "look at both; keep one", path, group[0])


def _map_first_rows(rows: Sequence[Example]) -> dict[Path, Example]:
    found: dict[Path, Example] = {}
    for row in rows:
        for picture in row.images:
            found.setdefault(picture.path, row)
    return found


def _map_first_by_content(identical_files: Mapping[Path, Path], rows: Mapping[Path, Example]) -> dict[Path, Example]:
    """The first row of each set of equal files."""
    found: dict[Path, Example] = {}
    for path, row in rows.items():
        found.setdefault(identical_files[path], row)
    return found


def _map_originals(identical_files: Mapping[Path, Path], first: Mapping[Path, Example]) -> dict[Path, Path]:
    """Each path → the path, as a row names it, of the first file with these bytes."""
    named: dict[Path, Path] = {}
    return {path: named.setdefault(identical_files[path], path) for path in identical_files if path in first}


def _format_row(earlier: Example, row: Example) -> str:
    return f"row {earlier.row}" if earlier.source == row.source else earlier.where


def _format_image(path: Path, earlier: Example, row: Example) -> str:
    return f"{path.name} of {_format_row(earlier, row)}" if earlier is not row else f"{path.name} of the same row"
