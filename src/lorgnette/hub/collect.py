"""A data set on a hub → a folder: `pictures/`, `captions.csv` (image_path,caption) and `download.json`.

Only what is asked for is fetched. Every row is noted in a journal as soon as its picture is on disk, so that a start
after a kill goes on behind the last one, and a start after the end fetches nothing at all.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.hub.download import OnProgress, ignore_progress
from lorgnette.hub.journal import Journal, Noted
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.pictures import Gathered, gather, store
from lorgnette.hub.places import open_fallback
from lorgnette.hub.rows import Choice
from lorgnette.hub.sources import DatasetAddress, open_rows, parse_address
from lorgnette.hub.trouble import redact_url
from lorgnette.io.atomic import atomic_write, write_json

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Missing:
    """A row that is not in captions.csv, and why."""

    place: str
    picture: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Collected:
    """rows, captions, pictures: in the folder. files, bytes: fetched by this start. served: pictures by source."""

    table: Path
    revision: str
    rows: int
    captions: int
    pictures: int
    files: int
    bytes: int
    served: dict[str, int]
    missing: tuple[Missing, ...]


def silent(text: str) -> None:
    """Nobody listens."""


def collect(
    source: str,
    out: Path,
    *,
    rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    seen: OnProgress = ignore_progress,
    say: Say = silent,
    workers: int = 8,
    patience: RetryPolicy | None = None,
) -> Collected:
    """`hf:NAME[@REVISION][:config][:split]` or `modelscope:NS/NAME[@REVISION][:split]` → `out`.

    rows: the first so many; sample: so many, drawn fairly by `seed`; neither: all. Raises LorgnetteError where the
    source as a whole cannot be had, or no row of it.
    """
    address = parse_address(source, split)
    if rows is not None and sample is not None:
        raise LorgnetteError("--rows and --sample exclude each other", hint="give one of them")
    choice = Choice(rows, sample, seed, image_column, caption_column)
    request = {"source": address.text, "image_column": image_column, "caption_column": caption_column}
    with Journal.open(out, request, choice.key) as journal:
        asked = {"rows": rows, "sample": sample, "seed": seed, "images_from": images_from and redact_url(images_from)}
        if (done := _finished(out, asked)) is not None:
            say(f"{address.text}: already in {out}, nothing to fetch")
            return done
        with HttpClient(num_workers=workers, retry_policy=patience) as line:
            where = open_fallback(images_from, line) if images_from else None
            try:
                notes = _noted(address, journal, choice, line, seen, say)
                gathered = gather(notes, journal, line, where, address.split, seen)
            finally:
                journal.add_fetched(line.num_bytes)
        return _result(notes, gathered, journal, asked, line.num_bytes, say)


def _noted(
    address: DatasetAddress, journal: Journal, choice: Choice, line: HttpClient, seen: OnProgress, say: Say
) -> list[Noted]:
    """The chosen rows: those of the journal, then what the source has behind them."""
    notes = journal.notes
    if journal.ended or (choice.count is not None and len(notes) >= choice.count):
        return notes[: choice.count]
    reader = open_rows(address, journal, choice, line, seen, say)
    if notes:
        say(f"going on behind {notes[-1].place}")
    for row, token in reader.read(notes[-1].token if notes else None):
        journal.note(store(row, token, journal))
        if isinstance(row.picture, bytes):
            seen(1, len(row.picture))
        if choice.count is not None and len(notes) >= choice.count:
            return notes
    journal.end()
    return notes


def _result(
    notes: list[Noted], gathered: Gathered, journal: Journal, asked: dict[str, Any], fetched: int, say: Say
) -> Collected:
    out = journal.out
    missing, usable = _sorted_out(notes, gathered)
    write_json(out / "failed.json", [asdict(each) for each in missing])
    if not usable:
        raise _nothing(missing, out, journal.source)
    with atomic_write(out / "captions.csv") as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image_path", "caption"))
        writer.writerows((f"pictures/{note.picture}", caption) for note in usable for caption in note.captions)
    pictures = sorted({note.picture for note in usable})
    from_ = {picture: gathered.served[picture] for picture in pictures}
    captions, served = sum(len(note.captions) for note in usable), dict(Counter(from_.values()))
    manifest = {
        "source": journal.source,
        "revision": journal.revision,
        "asked": asked,
        "rows": len(usable),
        "captions": captions,
        "pictures": len(pictures),
        "served": served,
        "bytes_of_pictures": _weight(out, pictures),
        "bytes_fetched": journal.fetched,
        "missing": len(missing),
        "pictures_from": from_,
    }
    write_json(out / "download.json", manifest)
    for where, count in served.items():
        say(f"{count:,} pictures from {where}")
    if missing:
        lost = f"{len(missing):,} of {len(notes):,} rows could not be had: {missing[0].what}"
        say(f"{lost}; {out / 'failed.json'} lists them")
    else:
        (out / "failed.json").unlink()
    return Collected(
        table=out / "captions.csv",
        revision=journal.revision,
        rows=len(usable),
        captions=captions,
        pictures=len(pictures),
        files=gathered.files,
        bytes=fetched,
        served=served,
        missing=missing,
    )


def _sorted_out(notes: list[Noted], gathered: Gathered) -> tuple[tuple[Missing, ...], list[Noted]]:
    missing, usable = [], []
    for note in notes:
        if (why := gathered.why(note)) is None:
            usable.append(note)
        else:
            missing.append(Missing(note.place, redact_url(note.url) if note.url else note.picture, *why))
    return tuple(missing), usable


def _nothing(missing: tuple[Missing, ...], out: Path, source: str) -> LorgnetteError:
    if not missing:
        return LorgnetteError("the split holds no rows", where=source, hint="take another split")
    what = f"not one of {len(missing):,} rows could be had: {missing[0].what}"
    return LorgnetteError(what, where=missing[0].picture or missing[0].place, hint=missing[0].remedy)


def _weight(out: Path, pictures: Iterable[str]) -> int:
    return sum(path.stat().st_size for picture in pictures if (path := out / "pictures" / picture).is_file())


def _finished(out: Path, asked: dict[str, Any]) -> Collected | None:
    """What an earlier start has completed, if it was asked for the same and all of it is still there."""
    try:
        manifest = json.loads((out / "download.json").read_text(encoding="utf-8"))
        whole = manifest["asked"] == asked and not manifest["missing"] and (out / "captions.csv").is_file()
        if not whole or _weight(out, manifest["pictures_from"]) != manifest["bytes_of_pictures"]:
            return None
        counts = {name: int(manifest[name]) for name in ("rows", "captions", "pictures")}
        revision, served = str(manifest["revision"]), dict(manifest["served"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Collected(out / "captions.csv", revision, **counts, files=0, bytes=0, served=served, missing=())
