"""Pictures of rows → files in `pictures/`, each saved once, under a name that a person recognises.

Knows nothing about formats of data sets.
"""

import hashlib
import os
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorgnette.hub import huggingface, modelscope, trouble
from lorgnette.hub.download import OnProgress, download_files
from lorgnette.hub.fetch import DownloadTask
from lorgnette.hub.journal import Journal, Noted
from lorgnette.hub.line import HttpClient
from lorgnette.hub.places import ImageFallback, MissingImage, list_candidate_names
from lorgnette.hub.proof import IMAGE_SUFFIXES, SUFFIXES, detect_image_format
from lorgnette.hub.rows import Row, Token

_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Gathered:
    """files: fetched now. served: who gave each picture. failed: why a picture could not be had, and what to do."""

    files: int
    served: dict[str, str]
    failed: dict[str, tuple[str, str]]

    def why(self, note: Noted) -> tuple[str, str] | None:
        """What keeps a row out; None: nothing."""
        return (note.fault, "it is left out") if note.fault else self.failed.get(note.picture)


def store(row: Row, token: Token, journal: Journal) -> Noted:
    """Name a row's picture; where it came with the row, put it on disk."""
    fault = row.fault or ("" if row.captions else "the caption is empty")
    url = row.picture if isinstance(row.picture, str) else ""
    content = row.picture if isinstance(row.picture, bytes) else b""
    suffix = SUFFIXES.get(detect_image_format(content[:12]) or "")
    if not url and suffix is None:
        fault = fault or ("the image cell is empty" if not content else "the image cell holds no picture")
    if fault:
        return Noted(row.place, row.captions, "", token, url, fault=fault)
    key = hashlib.sha256(url.encode() or content).hexdigest()[:16]
    name = _name(row, url, suffix, key, journal.names)
    if content and journal.names.get(name) != key:
        _write(journal.out / "pictures" / name, content)
    return Noted(row.place, row.captions, name, token, url, key, row.number, hub=row.hub)


def gather(
    notes: Sequence[Noted],
    journal: Journal,
    line: HttpClient,
    elsewhere: ImageFallback | None,
    split: str,
    seen: OnProgress,
) -> Gathered:
    """Have every picture that has an address: from there, or from `elsewhere`."""
    folder = journal.out / "pictures"
    due = {note.picture: note for note in notes if note.url and not note.fault}
    tokens = {"modelscope": modelscope.get_headers, "hf": huggingface.get_headers}
    wanted = [
        DownloadTask(note.url, folder / name, headers=tokens[note.hub]() if note.hub else {})
        for name, note in due.items()
    ]
    done = download_files(wanted, client=line, on_progress=seen)
    failed = {failure.path.name: (failure.message, failure.hint) for failure in done.failures}
    for name, note in due.items():
        if name not in failed and name not in journal.served:
            journal.serve(name, urllib.parse.urlsplit(note.url).hostname or note.url)
    if failed and elsewhere is None:
        remedy = "give --images-from a folder, zip file or address that holds the pictures"
        failed = {name: (what, remedy) for name, (what, _) in failed.items()}
    elif failed and elsewhere is not None:
        place = elsewhere.where
        missed = [
            MissingImage(folder / name, list_candidate_names(due[name].url, due[name].number, split)) for name in failed
        ]
        elsewhere.provide(missed, lambda path: journal.serve(path.name, place), seen)
        left = {name: why for name, why in failed.items() if not (folder / name).is_file()}
        failed = {name: (f"{what}; not in {place} either", remedy) for name, (what, remedy) in left.items()}
    served = {note.picture: journal.served.get(note.picture, journal.source) for note in notes if note.picture}
    return Gathered(done.num_files, served, failed)


def _name(row: Row, url: str, suffix: str | None, key: str, taken: dict[str, str]) -> str:
    """The source's own name; the key where it has none, and beside it where two pictures share one."""
    own = PurePosixPath(_ODD.sub("_", PurePosixPath(urllib.parse.unquote(row.name)).name))
    named = own.suffix.lower() in IMAGE_SUFFIXES
    ending = suffix or (own.suffix.lower() if named else ".jpg")
    stem = (own.stem if named else own.name).strip("._")[:100]
    name = f"{stem}{ending}" if stem else f"{key}{ending}"
    return name if taken.get(name, key) == key else f"{stem}-{key[:8]}{ending}"


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise trouble.explain_disk_error(error, path) from error
