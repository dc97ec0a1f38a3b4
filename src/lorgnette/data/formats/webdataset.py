"""WebDataset: a tar whose members belong together by name → captions.

    000123.jpg  000123.txt          one sample: the name up to the first dot; the caption is the text,
    000124.jpg  000124.json         or stands in the JSON under caption, captions or text

A sample is a row; its members stand side by side. Other members (.cls, a .json beside a .txt) are like a table's other
columns. Pictures are laid down on the shelf as they come by, by default in `<tar>.pictures`. Read only.
"""

import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from lorgnette.data import rows
from lorgnette.data.formats import captions
from lorgnette.data.image_resolver import inside, limited
from lorgnette.data.images import SUFFIXES
from lorgnette.data.text_files import decoded, json_value
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_TEXT = 16 * 1024**2


@dataclass(slots=True)
class _Sample:
    """What has been read of one sample; an error keeps its row from being used."""

    key: str
    pictures: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    error: LorgnetteError | None = None


def examples(path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    """Sample by sample, never the whole tar."""
    places = rows.places(path, asked.unnamed(path))
    with closing(_samples(path)) as samples:
        for sample in samples:
            yield from _row(sample, places.next())


def _row(sample: _Sample, place: rows.Place) -> Iterator[rows.Row]:
    return place.judged(lambda: _examples(sample, place))


def _examples(sample: _Sample, place: rows.Place) -> list[Example]:
    if sample.error is not None:
        raise sample.error
    if len(sample.pictures) != 1:
        found = ", ".join(sample.pictures) or "no picture"
        raise LorgnetteError(
            f"sample {sample.key!r} has {found}", remedy="give each sample one picture (.jpg, .png, …)"
        )
    caption = _caption(sample)  # first: a sample that cannot be used lays nothing down
    [(suffix, content)] = sample.pictures.items()
    return captions.described(place.laid(content, suffix), caption, place, name="the caption", id_=sample.key)


def _caption(sample: _Sample) -> object:
    if "txt" in sample.texts:
        return decoded(sample.texts["txt"], f"{sample.key}.txt")
    if "json" not in sample.texts:
        raise LorgnetteError(f"sample {sample.key!r} has no caption", remedy="put it into a .txt or .json member")
    record = json_value(decoded(sample.texts["json"], f"{sample.key}.json"))
    if not isinstance(record, dict) or not any(name in record for name in captions.CAPTION):
        found = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else "no object"
        raise LorgnetteError(
            f"{sample.key}.json holds {found}", remedy=f"put the caption under {' or '.join(captions.CAPTION)}"
        )
    return record[captions.column(record, captions.CAPTION)]


def _samples(path: Path) -> Generator[_Sample, None, None]:
    sample: _Sample | None = None
    try:
        with tarfile.open(path, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every member it has passed
                if not member.isdir():
                    key, suffix = _split(member.name)
                    if sample is not None and sample.key != key:
                        yield sample
                        sample = None
                    sample = sample or _Sample(key)
                    _take(tar, member, sample, suffix)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LorgnetteError(
            f"the tar cannot be read{f' behind {sample.key!r}' if sample else ''}: {error}",
            where=str(path),
            remedy="get it again (it was cut off or damaged on its way), or unpack a .tar.gz first",
        ) from error
    if sample is not None:
        yield sample


def _split(name: str) -> tuple[str, str]:
    """(what the members of a sample share, the rest in small letters), split at the first dot of the file's name."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    first, _, suffix = last.partition(".")
    return f"{folder}{slash}{first}", suffix.lower()


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, suffix: str) -> None:
    try:
        inside(member.name)
        shown, said = f".{suffix}" in SUFFIXES, suffix in ("txt", "json")
        if not (shown or said):
            return
        stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if stream is None:
            raise LorgnetteError(f"{member.name!r} is a link or no ordinary file", remedy="pack the file itself")
        if suffix in sample.pictures or suffix in sample.texts:
            raise LorgnetteError(f"{member.name!r} is there twice", remedy="remove one of them")
        if shown:
            sample.pictures[suffix] = limited(stream, member.name)
        else:
            sample.texts[suffix] = limited(stream, member.name, most=_TEXT)
    except tarfile.TarError:
        raise
    except LorgnetteError as error:
        sample.error = error
