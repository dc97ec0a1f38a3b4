"""Parquet files on a hub → rows with their pictures, by row groups: the first N rows cost about what they weigh.

Knows nothing about hubs. Needs pyarrow, which the extra `hub` brings.
"""

import importlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorgnette.errors import LorgnetteError
from lorgnette.hub.columns import Column, Pair, choose
from lorgnette.hub.line import HttpClient
from lorgnette.hub.ranged import RemoteFile
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.hub.rows import Choice, Row, Token, captions

AT_ONCE, GROUPS, ROWS_A_GROUP = 16, 16, 25
_AHEAD, _STREAM = 64 << 10, 2 << 20
_NAMES, _NUMBERS = ("file_name", "filename"), ("cocoid", "image_id")


@dataclass(frozen=True, slots=True)
class ParquetRows:
    """A sample is drawn in two steps, because a row group is read as a whole: row groups first (16 or more, and one
    for every 25 rows), then rows of them. Every row is equally likely where the groups are of one size."""

    files: Sequence[RepositoryFile]
    repository: Repository
    choice: Choice
    line: HttpClient
    say: Callable[[str], None]

    def read(self, after: Token | None) -> Iterator[tuple[Row, Token]]:
        """Token: [file, row of the file]; of a sample [how many are done]."""
        return self._all(after) if self.choice.sample is None else self._sample(after)

    def _all(self, after: Token | None) -> Iterator[tuple[Row, Token]]:
        first, done = (int(after[0]), int(after[1])) if after else (0, 0)
        for index in range(first, len(self.files)):
            opened = self._open(index)
            start = 0
            for group in range(opened.metadata.num_row_groups):
                rows = opened.metadata.row_group(group).num_rows
                skip = done if index == first else 0
                if start + rows > skip:
                    wanted = range(max(0, skip - start), rows)
                    for offset, row in self._group(opened, index, group, start, wanted):
                        yield row, [index, start + offset + 1]
                start += rows

    def _sample(self, after: Token | None) -> Iterator[tuple[Row, Token]]:
        done, total = int(after[0]) if after else 0, 0
        opened = {index: self._open(index) for index in range(len(self.files))}
        for index, group, start, offsets in self._drawn(opened):
            wanted = [offset for place, offset in enumerate(offsets) if total + place >= done]
            if wanted:
                for place, (_, row) in enumerate(self._group(opened[index], index, group, start, wanted)):
                    yield row, [total + len(offsets) - len(wanted) + place + 1]
            total += len(offsets)

    def _drawn(self, opened: dict[int, Any]) -> list[tuple[int, int, int, list[int]]]:
        """(file, row group, its first row, the rows of it) of a sample, in the order of the files."""
        groups = []
        for index, file in opened.items():
            start = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                groups.append((index, group, start, rows))
                start += rows
        rng = random.Random(self.choice.seed)
        rng.shuffle(groups)
        count = self.choice.sample or 0
        taken: list[tuple[int, int, int, int]] = []
        for each in groups:
            enough = max(GROUPS, math.ceil(count / ROWS_A_GROUP))
            if len(taken) >= enough and sum(rows for *_, rows in taken) >= count:
                break
            taken.append(each)
        taken.sort()
        rows = [(place, offset) for place, each in enumerate(taken) for offset in range(each[3])]
        chosen = sorted(rng.sample(rows, min(count, len(rows))))
        self.say(f"the sample is drawn from {len(taken)} of {len(groups)} row groups")
        return [
            (*each[:3], offsets)
            for place, each in enumerate(taken)
            if (offsets := [offset for own, offset in chosen if own == place])
        ]

    def _open(self, index: int) -> Any:
        parquet, arrow = _arrow()
        try:
            source = RemoteFile(self.line, self.repository, self.files[index], read_ahead=_AHEAD, max_read_ahead=_AHEAD)
            return parquet.ParquetFile(source, pre_buffer=False, buffer_size=_STREAM)
        except (arrow.ArrowException, OSError) as error:
            raise self._broken(index, error) from error

    def _group(
        self, opened: Any, index: int, group: int, start: int, wanted: Sequence[int]
    ) -> Iterator[tuple[int, Row]]:
        """The wanted rows of a row group, which is read no further than to the last of them."""
        _, arrow = _arrow()
        pair, more = self._columns(opened)
        offset, due, last = 0, set(wanted), max(wanted)
        try:
            for batch in opened.iter_batches(AT_ONCE, row_groups=[group], columns=more):
                for record in batch.to_pylist():
                    if offset in due:
                        yield offset, self._row(record, pair, f"{self.files[index].path}, row {start + offset + 1}")
                    offset += 1
                if offset > last:
                    return
        except (arrow.ArrowException, OSError) as error:
            raise self._broken(index, error) from error

    def _columns(self, opened: Any) -> tuple[Pair, list[str]]:
        schema = opened.schema_arrow
        found = [Column(field.name, _kind(field.type)) for field in schema]
        pair = choose(found, image=self.choice.image, caption=self.choice.caption, where=self.repository.where)
        beside = [name for name in (*_NAMES, *_NUMBERS) if name in schema.names]
        return pair, list(dict.fromkeys([pair.image, pair.caption, *beside]))

    def _row(self, record: dict[str, Any], pair: Pair, place: str) -> Row:
        cell, name, fault = record[pair.image], "", ""
        if isinstance(cell, dict):
            name, cell = str(cell.get("path") or ""), cell.get("bytes")
        if isinstance(cell, str):
            name = cell.split("?")[0].rsplit("/", 1)[-1]
            own = self.repository.find_file(cell)
            cell, hub = (own.url, self.repository.hub) if own else (cell, "")
            fault = "" if cell.startswith(("http://", "https://")) else f"the picture {cell!r} is no address"
        else:
            cell, hub = bytes(cell or b""), ""
        name = name or next((str(record[key]) for key in _NAMES if record.get(key)), "")
        number = next((str(record[key]) for key in _NUMBERS if record.get(key) is not None), "")
        coco = int(number) if number.isdecimal() and len(number) <= 12 else None
        return Row(place, captions(record[pair.caption]), cell, name, coco, fault, hub)

    def _broken(self, index: int, error: Exception) -> LorgnetteError:
        said = " ".join(str(error).split())[:160]
        where = f"{self.repository.where}, {self.files[index].path}"
        return LorgnetteError(f"the parquet file cannot be read: {said}", where=where, hint="take another data set")


def _arrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
    except ImportError as error:
        raise LorgnetteError("parquet files need pyarrow", hint="pip install 'lorgnette[hub]'") from error


def _kind(type: Any) -> Literal["picture", "bytes", "text", "texts", "other"]:
    is_a = importlib.import_module("pyarrow.types")
    if is_a.is_dictionary(type):
        return _kind(type.value_type)
    if is_a.is_list(type) or is_a.is_large_list(type):
        inner = type.value_type
        words = is_a.is_struct(inner) and any(inner.get_field_index(name) >= 0 for name in ("raw", "caption", "text"))
        return "texts" if words or _kind(inner) == "text" else "other"
    if is_a.is_struct(type):
        return "picture" if type.get_field_index("bytes") >= 0 else "other"
    if is_a.is_binary(type) or is_a.is_large_binary(type):
        return "bytes"
    return "text" if is_a.is_string(type) or is_a.is_large_string(type) else "other"
