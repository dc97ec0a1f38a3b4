"""What stands in a data set more than once: rows, pictures by their bytes, pictures by their looks; and what stands in
both parts, so that the test asks for what was trained.

Each finding is at the later row and names the earlier one. Knows nothing about forms, tokens or models.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lorgnette.data.checks import near_duplicates
from lorgnette.types import Example, Finding, FindingKind, Turn

_ONE_PART = "keep one of them, or put all of the picture's rows into one part"


def repeats(
    train: Sequence[Example], test: Sequence[Example], same: Mapping[Path, Path], sketches: Mapping[Path, bytes]
) -> Iterator[Finding]:
    """Findings over both parts. same: `identities` of their pictures. sketches: of those whose looks are compared."""
    trained, tested = _first_rows(train), _first_rows(test)
    first = tested | trained
    yield from _rows((*train, *test))
    yield from _leaks(test, same, _first_of(same, trained))
    yield from _copies(same, trained, first)
    yield from _look_alikes(same, trained, first, sketches)


def _rows(rows: Sequence[Example]) -> Iterator[Finding]:
    """By what is shown and said; what it is called and where it stands do not matter."""
    seen: dict[tuple[Turn, ...], Example] = {}
    for row in rows:
        earlier = seen.setdefault(row.turns, row)
        if earlier is not row:
            said = f"shows and says the same as {_place(earlier, row)}"
            yield Finding.at(row, "repeated-row", said, "remove one of them")


def _leaks(test: Sequence[Example], same: Mapping[Path, Path], trained: Mapping[Path, Example]) -> Iterator[Finding]:
    for row in test:
        for path in dict.fromkeys(picture.path for picture in row.pictures):
            if earlier := trained.get(same[path]):
                said = f"{path.name} is held out, and trained on in {_place(earlier, row)}"
                yield Finding.at(row, "leak", said, _ONE_PART, path)


def _copies(
    same: Mapping[Path, Path], trained: Mapping[Path, Example], first: Mapping[Path, Example]
) -> Iterator[Finding]:
    """Another file of the same bytes, in the same part: across parts it is a leak already."""
    for path, original in _originals(same, first).items():
        if path != original and (path in trained) == (original in trained):
            row = first[path]
            said = f"{path.name} is, byte for byte, {_picture_of(original, first[original], row)}"
            yield Finding.at(row, "copy", said, "name one file in both rows, or remove one", path, original)


def _look_alikes(
    same: Mapping[Path, Path],
    trained: Mapping[Path, Example],
    first: Mapping[Path, Example],
    sketches: Mapping[Path, bytes],
) -> Iterator[Finding]:
    """Among files of different bytes. One that is trained on speaks for its group, so that a leak is seen as one."""
    originals = _originals(same, first)
    in_training = {originals[path] for path in trained}
    paths = [path for path, original in originals.items() if path == original and path in sketches]
    for places in near_duplicates.groups([sketches[path] for path in paths]):
        group = sorted((paths[place] for place in places), key=lambda path: path not in in_training)
        for path in group[1:]:
            leak = group[0] in in_training and path not in in_training
            kind: FindingKind = "look-alike-leak" if leak else "look-alike"
            row = first[path]
            held = " is held out and" if leak else ""
            said = f"{path.name}{held} looks like {_picture_of(group[0], first[group[0]], row)}"
            yield Finding.at(row, kind, said, _ONE_PART if leak else "look at both; keep one", path, group[0])


def _first_rows(rows: Sequence[Example]) -> dict[Path, Example]:
    found: dict[Path, Example] = {}
    for row in rows:
        for picture in row.pictures:
            found.setdefault(picture.path, row)
    return found


def _first_of(same: Mapping[Path, Path], rows: Mapping[Path, Example]) -> dict[Path, Example]:
    """The first row of each set of equal files."""
    found: dict[Path, Example] = {}
    for path, row in rows.items():
        found.setdefault(same[path], row)
    return found


def _originals(same: Mapping[Path, Path], first: Mapping[Path, Example]) -> dict[Path, Path]:
    """Each path → the path, as a row names it, of the first file with these bytes."""
    named: dict[Path, Path] = {}
    return {path: named.setdefault(same[path], path) for path in same if path in first}


def _place(earlier: Example, row: Example) -> str:
    return f"row {earlier.row}" if earlier.source == row.source else earlier.where


def _picture_of(path: Path, earlier: Example, row: Example) -> str:
    return f"{path.name} of {_place(earlier, row)}" if earlier is not row else f"{path.name} of the same row"
