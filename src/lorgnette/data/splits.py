"""Splits examples into a training part and a test part.

Knows nothing about data formats, prompts or output files.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from lorgnette.data.example_table import ExampleTable
from lorgnette.errors import UsageError
from lorgnette.io.processes import count_processes, map_in_processes
from lorgnette.types import Example

Split = Literal["image", "tail"]
Holdout = int | Literal["auto"]
MIN_AUTO, MAX_AUTO = 4, 64
_MIDDLE_BYTES = 1024
MIN_SHARED_FILES = 4096
"""Fewer files are read in this process."""
_BLOCK_FILES = 512
"""Files that another process reads at once."""


def train_test_split(
    examples: Sequence[Example], *, holdout: Holdout, split: Split, identical_files: Mapping[Path, Path] | None = None
) -> tuple[ExampleTable, ExampleTable]:
    """(training part, test part), both in the source's order.

    "tail": the last `holdout` rows, as the tutorial does. An image with several captions can then be in both parts,
    and the test asks for something that was trained on.
    "image": rows that share an image stay together. Such groups go into the test part from the end of the data while
    they fit. If they do not add up to `holdout`, the test part gets larger: by the smallest group that did not fit, or
    it becomes one large group alone, whichever has fewer rows (among equals the last).
    holdout "auto": a tenth of these groups (of the rows, for "tail"), from MIN_AUTO to MAX_AUTO; of fewer than
    2 × MIN_AUTO a quarter. It never takes more than half of the rows, and may take none.
    identical_files: `map_identical_files` of all images, if known.

    Raises UsageError if `holdout` leaves nothing to train on.
    """
    examples = examples if isinstance(examples, ExampleTable) else ExampleTable(examples)
    if examples and not holdout:
        return examples, examples[:0]
    if split == "image":
        same = map_identical_files(_list_image_paths(examples)) if identical_files is None else identical_files
        groups = _group_by_image(examples, same)
    else:
        groups = [[row] for row in range(len(examples))]
    if holdout == "auto":
        test_rows = _select_auto(groups)
        return _split_rows(examples, test_rows)
    if not 0 <= holdout < len(examples):
        count = "is 1 usable row" if len(examples) == 1 else f"are {len(examples)} usable rows"
        message = f"holdout is {holdout}, but there {count}"
        raise UsageError(message, where="holdout", hint=_suggest_holdout(groups, len(examples)))
    is_tail = split == "tail"
    test_rows = set(range(len(examples) - holdout, len(examples))) if is_tail else _select_from_end(groups, holdout)
    if len(test_rows) == len(examples):
        message = f"holding out {holdout} rows and all others with the same images leaves nothing for training"
        raise UsageError(message, where="holdout", hint=_suggest_holdout(groups, len(examples)))
    return _split_rows(examples, test_rows)


def parse_holdout(text: str | int) -> Holdout:
    """`auto`, or a number of rows. Raises UsageError."""
    if text == "auto":
        return "auto"
    if f"{text}".isdecimal():
        return int(text)
    raise UsageError(f"holdout is {text}", where="--holdout", hint="write a whole number of 0 or more, or auto")


def count_shared_images(train: Iterable[Example], test: Iterable[Example]) -> int:
    """How many images are in both parts, compared by content."""
    paths = [list(_image_paths(part)) for part in (train, test)]
    same = map_identical_files(chain(*paths))
    return len(set.intersection(*({same[path] for path in part} for part in paths)))


def map_identical_files(paths: Iterable[Path], known_info: Mapping[Path, Hashable] | None = None) -> dict[Path, Path]:
    """Each path → one path for all files with the same bytes (SHA-256).

    known_info: anything known about the files that is equal for equal bytes; files that differ in it are not opened.
    Only files of one size whose middle bytes agree are hashed: of 100,000 photographs half share their size with
    another.
    """
    resolve_folder = cache(Path.resolve)  # resolving each path on its own costs as much as reading an image header
    resolved: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        resolved[path] = path.resolve() if path.is_symlink() else resolve_folder(path.parent) / path.name
    info = {file: (known_info or {}).get(path) for path, file in resolved.items()}
    first = {file: file for file in info}
    same_size = _group_by_key(info, [(file.stat().st_size, info[file]) for file in info])
    same_middle = _group_by_content(same_size, _hash_middle)
    for same in _group_by_content(same_middle, _hash_file):
        first |= dict.fromkeys(same, same[0])
    return {path: first[file] for path, file in resolved.items()}


def map_copies(paths: Iterable[Path]) -> dict[Path, Path]:
    """As `map_identical_files`; a file that is not there is like no other."""
    paths = list(dict.fromkeys(paths))
    return {path: path for path in paths} | map_identical_files(path for path in paths if path.is_file())


def _group_by_key(files: Iterable[Path], keys: Iterable[Hashable]) -> list[list[Path]]:
    """Two or more files with equal keys, in their order."""
    groups: dict[Hashable, list[Path]] = defaultdict(list)
    for file, key in zip(files, keys, strict=True):
        groups[key].append(file)
    return [group for group in groups.values() if len(group) > 1]


def _group_by_content(groups: Sequence[Sequence[Path]], hash_content: Callable[[Path], bytes]) -> list[list[Path]]:
    """Two or more files of one group with equal hashes. Processes share many files."""
    files = list(chain.from_iterable(groups))
    blocks = [range(start, min(start + _BLOCK_FILES, len(files))) for start in range(0, len(files), _BLOCK_FILES)]
    num_processes = count_processes() if len(files) > MIN_SHARED_FILES else 1
    hash_block = partial(_hash_block, files, hash_content)
    hashes = chain.from_iterable(map_in_processes(hash_block, blocks, num_processes))
    numbers = (number for number, group in enumerate(groups) for _ in group)
    return _group_by_key(files, list(zip(numbers, hashes, strict=True)))


def _hash_block(files: Sequence[Path], hash_content: Callable[[Path], bytes], numbers: range) -> list[bytes]:
    return [hash_content(files[number]) for number in numbers]


def _hash_middle(file: Path) -> bytes:
    with open(file, "rb", buffering=0) as content:
        content.seek(max(0, os.fstat(content.fileno()).st_size // 2 - _MIDDLE_BYTES // 2))
        return hashlib.sha256(content.read(_MIDDLE_BYTES)).digest()


def _hash_file(file: Path) -> bytes:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _image_paths(examples: Iterable[Example]) -> Iterator[Path]:
    return (image.path for example in examples for image in example.images)


def _list_image_paths(examples: ExampleTable) -> list[Path]:
    """Of all rows, in the order of their first use."""
    images, (numbers, _) = examples.images, examples.list_image_numbers()
    return [images[number].path for number in dict.fromkeys(numbers.tolist())]


def _split_rows(examples: ExampleTable, test_rows: Collection[int]) -> tuple[ExampleTable, ExampleTable]:
    is_test = np.zeros(len(examples), bool)
    is_test[list(test_rows)] = True
    return examples.select(np.flatnonzero(~is_test)), examples.select(np.flatnonzero(is_test))


def _select_auto(groups: Collection[list[int]]) -> set[int]:
    """Rows of whole groups from the end, as many groups as holdout "auto" means."""
    num_groups, num_rows = len(groups), sum(map(len, groups))
    count = min(max(MIN_AUTO, num_groups // 10), MAX_AUTO) if num_groups >= 2 * MIN_AUTO else num_groups // 4
    selected: set[int] = set()
    for group in sorted(groups, key=lambda rows: rows[-1], reverse=True):
        if count and 2 * (len(selected) + len(group)) <= num_rows:
            selected.update(group)
            count -= 1
    return selected


def _select_from_end(groups: Iterable[list[int]], holdout: int) -> set[int]:
    """Rows of whole groups: `holdout` of them, or as few more as possible."""
    selected: set[int] = set()
    skipped: list[list[int]] = []
    for group in sorted(groups, key=lambda rows: rows[-1], reverse=True):
        if len(selected) + len(group) <= holdout:
            selected.update(group)
        else:
            skipped.append(group)
    if len(selected) == holdout:
        return selected
    smallest: list[int] = min(skipped, key=len)
    options = [selected.union(smallest), *(set(group) for group in skipped if len(group) >= holdout)]
    return min(options, key=len)


def _suggest_holdout(groups: Sequence[list[int]], num_rows: int) -> str:
    """A number of rows that can be held out: about a tenth, at least 4 and at most half, if that leaves some."""
    usual = min(max(4, num_rows // 10), num_rows // 2)
    fitting = (
        count for count in (usual, 1) if 0 < count < num_rows and len(_select_from_end(groups, count)) < num_rows
    )
    if holdout := next(fitting, 0):
        return f"write data.holdout={holdout} (prepare: --holdout {holdout})"
    if num_rows > 1:
        return "all rows share one image: write data.split=tail to ignore that, or name other rows with data.test=FILE"
    return "add rows, or train on all: data.holdout=0 (prepare: --holdout 0)"


def _group_by_image(examples: ExampleTable, identical_files: Mapping[Path, Path]) -> list[list[int]]:
    """Rows joined by a common image, also through other rows (union-find); a row without images is alone."""
    numbers, offsets = examples.list_image_numbers()
    files = dict[Path, int]()
    file_numbers = {
        number: files.setdefault(identical_files[examples.images[number].path], len(files))
        for number in dict.fromkeys(numbers.tolist())
    }
    if (np.diff(offsets) <= 1).all():  # no row joins others
        alone = np.arange(-1, -1 - len(examples), -1)
        alone[np.diff(offsets) == 1] = [file_numbers[number] for number in numbers.tolist()]
        same_file: dict[int, list[int]] = defaultdict(list)
        for row, file in enumerate(alone.tolist()):
            same_file[file].append(row)
        return list(same_file.values())
    parents = list(range(len(examples)))
    first_row: dict[int, int] = {}
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        for number in numbers[start:end].tolist():
            earlier = first_row.setdefault(file_numbers[number], row)
            parents[_find_root(parents, row)] = _find_root(parents, earlier)
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(examples)):
        groups[_find_root(parents, row)].append(row)
    return list(groups.values())


def _find_root(parents: list[int], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row
