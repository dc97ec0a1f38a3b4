"""A CSV, TSV, JSONL or JSON file on disk, plain or alone in a zip → rows whose pictures are addresses.

Knows nothing about hubs but where a relative path of a repository leads.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lorgnette.errors import LorgnetteError
from lorgnette.hub import archive
from lorgnette.hub.columns import Column, Pair, choose
from lorgnette.hub.repository import Repository
from lorgnette.hub.rows import Choice, Row, Token, captions

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
LARGEST = 8 << 30
_JOINED = "&&"


@dataclass(frozen=True, slots=True)
class TableRows:
    """files: each brings its file onto the disk when it is called. repository: where relative pictures lie."""

    files: Sequence[Callable[[], Path]]
    repository: Repository
    choice: Choice

    def read(self, after: Token | None) -> Iterator[tuple[Row, Token]]:
        done = int(after[0]) if after else 0
        wanted = self._wanted()
        for total, (place, record, pair) in enumerate(self._records(), start=1):
            if total > done and (wanted is None or total in wanted):
                yield self._row(place, record, pair), [total]

    def _wanted(self) -> set[int] | None:
        """The rows' numbers from 1; None: all, one after the other."""
        if self.choice.sample is None:
            return None
        return {index + 1 for index in self.choice.numbers(sum(1 for file in self.files for _ in records(file())))}

    def _records(self) -> Iterator[tuple[str, dict[str, Any], Pair]]:
        for file in self.files:
            path, pair = file(), None
            for number, record in enumerate(records(path), start=1):
                if pair is None:
                    asked = self.choice.image, self.choice.caption
                    pair = choose(_kinds(record), image=asked[0], caption=asked[1], where=path.name)
                yield f"{path.name}, row {number}", record, pair

    def _row(self, place: str, record: dict[str, Any], pair: Pair) -> Row:
        coco = str(record.get("image_id", record.get("cocoid", "")))
        found = captions(record.get(pair.caption), joined=_JOINED if "image_id" in record else None)
        address = str(record.get(pair.image) or "").strip()
        url = self._address(address)
        fault = "" if url else f"the picture {address!r} is neither an address nor a file of the data set"
        return Row(
            place,
            found,
            url,
            name=address.split("?")[0].rsplit("/", 1)[-1],
            number=int(coco) if coco.isdecimal() and len(coco) <= 12 else None,
            fault=fault,
            hub="" if address == url else self.repository.hub,
        )

    def _address(self, cell: str) -> str:
        if cell.startswith(("http://", "https://")):
            return cell
        for prefix in ("", "images/", "data/"):
            if (file := self.repository.find_file(prefix + cell.removeprefix("./"))) is not None:
                return file.url
        return ""


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Row by row; only a JSON list is read as a whole."""
    with _opened(path) as (file, name):
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            if name.endswith((".csv", ".tsv")):
                yield from _separated(text, "\t" if name.endswith(".tsv") else ",")
            else:
                yield from _objects(text, name)
        except UnicodeDecodeError as error:
            raise LorgnetteError("the file is not UTF-8", where=str(path), hint="take another data set") from error
        except (csv.Error, ValueError, RecursionError) as error:
            raise LorgnetteError(f"the table is broken: {error}", where=str(path), hint="get it anew") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    if path.suffix.lower() != ".zip":
        with path.open("rb") as file:
            yield file, path.name.lower()
        return
    with archive.open_zip(path) as zipped:
        tables = archive.list_members(zipped, SUFFIXES)
        if len(tables) != 1:
            named = ", ".join(info.filename for info in tables[:5]) or "none"
            raise LorgnetteError(
                f"the zip file holds {len(tables)} tables ({named}), not one",
                where=str(path),
                hint="unpack it by hand",
            )
        with zipped.open(archive.check_member_size(tables[0], LARGEST, where=str(path))) as file:
            yield file, tables[0].filename.lower()


def _separated(text: IO[str], separator: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(text, delimiter=separator)
    for record in reader:
        record.pop(None, None)  # cells beyond the columns
        yield record


def _objects(text: IO[str], name: str) -> Iterator[dict[str, Any]]:
    values = (json.loads(line) for line in text if line.strip()) if name.endswith(".jsonl") else json.load(text)
    if not name.endswith(".jsonl") and not isinstance(values, list):
        raise ValueError("it is not a list")
    for value in values:
        if not isinstance(value, dict):
            raise ValueError("a row is not an object")
        yield value


def _kinds(record: dict[str, Any]) -> list[Column]:
    def column(name: str, value: Any) -> Column:
        texts = isinstance(value, list) and all(isinstance(each, str | dict) for each in value)
        return Column(name, "text" if isinstance(value, str) else "texts" if texts else "other")

    return [column(name, value) for name, value in record.items()]
