"""Examples → a training part and a test part.

Knows nothing about forms, prompts or what is written where.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lorgnette.errors import UsageError
from lorgnette.types import Example

Split = Literal["image", "tail"]
_MIDDLE_BYTES = 1024
_NO_INFO: Mapping[Path, Hashable] = MappingProxyType({})


def train_test_split(
    examples: Sequence[Example], *, holdout: int, split: Split, identical_files: Mapping[Path, Path] | None = None
) -> tuple[list[Example], list[Example]]:
    """(training part, test part), both in the source's order. same: `identities` of all pictures, if known.

    "tail": the last `holdout` rows, as the tutorial does. Where a picture has several captions it can then stand in
    both parts, and the test asks for what was trained.
    "picture": rows that show a common picture stay together. From the end towards the start, each such group goes
    into the test part if it still fits. Where `holdout` is not met exactly so, the test part is larger: those and
    the smallest group passed over, or one such group alone, whichever is fewer rows (the last of equals).
    """
    if not 0 <= holdout < len(examples):
        there = "is 1 usable row" if len(examples) == 1 else f"are {len(examples)} usable rows"
        raise UsageError(
            f"holdout is {holdout}, but there {there}",
            where="holdout",
            hint="hold out fewer rows than there are, so that some are left to train on",
        )
    if not holdout:
        return list(examples), []
    place = len(examples) - holdout
    if split == "image":
        identical_files = map_identical_files(_image_paths(examples)) if identical_files is None else identical_files
        test = _select_from_end(_group_by_image(examples, identical_files), holdout)
    else:
        test = set(range(place, len(examples)))
    if len(test) == len(examples):
        raise UsageError(
            f"holding out {holdout} rows and all that show the same pictures leaves nothing to train on",
            where="holdout",
            hint="hold out fewer rows, or use split=tail to hold out rows whatever they show",
        )
    train = [example for i, example in enumerate(examples) if i not in test]
    return train, [example for i, example in enumerate(examples) if i in test]


def count_shared_images(train: Iterable[Example], test: Iterable[Example]) -> int:
    """How many pictures stand in both parts."""
    one, other = list(train), list(test)
    same = map_identical_files(_image_paths((*one, *other)))
    first, second = ({same[picture.path] for example in part for picture in example.images} for part in (one, other))
    return len(first & second)


def map_identical_files(paths: Iterable[Path], known_info: Mapping[Path, Hashable] = _NO_INFO) -> dict[Path, Path]:
    """Each path → one path for the same picture: the same file, or a file of the same bytes (SHA-256).

    Only files of equal size and with the same bytes in their middle are hashed: others cannot be copies, and of
    100,000 photographs half share their size with another. looks: what is known of pictures and the same for the same
    bytes; files that differ in it are not even opened.
    """
    folder = cache(Path.resolve)  # of many pictures: each on its own costs as much as reading its header
    resolved = {
        path: path.resolve() if path.is_symlink() else folder(path.parent) / path.name for path in dict.fromkeys(paths)
    }
    known = {file: known_info.get(path) for path, file in resolved.items()}
    first: dict[Path, Path] = {}
    for same_size in _group_by(known, lambda file: (file.stat().st_size, known[file])):
        for files in _group_by(same_size, _read_middle):
            for same in _group_by(files, _hash_file):
                first |= dict.fromkeys(same, same[0])
    return {path: first[file] for path, file in resolved.items()}


def _group_by(files: Iterable[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Files by what the key says of them, in their order; one alone is not asked."""
    listed = list(files)
    if len(listed) == 1:
        return [listed]
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for file in listed:
        groups[key(file)].append(file)
    return list(groups.values())


def _read_middle(file: Path) -> bytes:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size // 2 - _MIDDLE_BYTES // 2))
        return content.read(_MIDDLE_BYTES)


def _hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _image_paths(examples: Iterable[Example]) -> Iterator[Path]:
    return (picture.path for example in examples for picture in example.images)


def _select_from_end(groups: Iterable[list[int]], holdout: int) -> set[int]:
    test: set[int] = set()
    passed: list[list[int]] = []
    for group in sorted(groups, key=lambda rows: rows[-1], reverse=True):
        if len(test) == holdout:
            break
        if len(test) + len(group) <= holdout:
            test.update(group)
        else:
            passed.append(group)
    if len(test) == holdout:
        return test
    smallest: list[int] = min(passed, key=len)
    ways = [test.union(smallest), *(set(group) for group in passed if len(group) >= holdout)]
    return min(ways, key=len)


def _group_by_image(examples: Sequence[Example], identical_files: Mapping[Path, Path]) -> list[list[int]]:
    """Rows joined by a common picture, also by way of other rows; a row without pictures is alone."""
    leader = list(range(len(examples)))
    shown_by: dict[Path, int] = {}
    for row, example in enumerate(examples):
        for picture in example.images:
            other = shown_by.setdefault(identical_files[picture.path], row)
            leader[_find_root(leader, row)] = _find_root(leader, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        groups[_find_root(leader, row)].append(row)
    return list(groups.values())


def _find_root(leader: list[int], row: int) -> int:
    while leader[row] != row:
        leader[row] = leader[leader[row]]
        row = leader[row]
    return row
