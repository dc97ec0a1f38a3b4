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

from lorgnette.data import row_location
from lorgnette.data.formats import captions
from lorgnette.data.image_resolver import check_member_name, read_member
from lorgnette.data.images import IMAGE_SUFFIXES
from lorgnette.data.text_files import decode_text, parse_json
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example

_MAX_TEXT_BYTES = 16 * 1024**2


@dataclass(slots=True)
class _Sample:
    """What has been read of one sample; an error keeps its row from being used."""

    key: str
    images: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    error: LorgnetteError | None = None


def read_shard(path: Path, options: row_location.ReadOptions) -> Iterator[row_location.Row]:
    """Sample by sample, never the whole tar."""
    places = row_location.create_row_counter(path, options.require_no_name(path))
    with closing(_read_samples(path)) as samples:
        for sample in samples:
            yield from _read_row(sample, places.next())


def _read_row(sample: _Sample, location: row_location.RowLocation) -> Iterator[row_location.Row]:
    return location.try_read(lambda: _build_examples(sample, location))


def _build_examples(sample: _Sample, location: row_location.RowLocation) -> list[Example]:
    if sample.error is not None:
        raise sample.error
    if len(sample.images) != 1:
        found = ", ".join(sample.images) or "no picture"
        raise LorgnetteError(f"sample {sample.key!r} has {found}", hint="give each sample one picture (.jpg, .png, …)")
    caption = _read_caption(sample)  # first: a sample that cannot be used lays nothing down
    [(suffix, content)] = sample.images.items()
    return captions.build_examples(
        location.extract_image(content, suffix), caption, location, name="the caption", id_=sample.key
    )


def _read_caption(sample: _Sample) -> object:
    if "txt" in sample.texts:
        return decode_text(sample.texts["txt"], f"{sample.key}.txt")
    if "json" not in sample.texts:
        raise LorgnetteError(f"sample {sample.key!r} has no caption", hint="put it into a .txt or .json member")
    record = parse_json(decode_text(sample.texts["json"], f"{sample.key}.json"))
    if not isinstance(record, dict) or not any(name in record for name in captions.CAPTION_COLUMNS):
        found = ", ".join(map(repr, list(record)[:8])) if isinstance(record, dict) else "no object"
        raise LorgnetteError(
            f"{sample.key}.json holds {found}", hint=f"put the caption under {' or '.join(captions.CAPTION_COLUMNS)}"
        )
    return record[captions.find_column(record, captions.CAPTION_COLUMNS)]


def _read_samples(path: Path) -> Generator[_Sample, None, None]:
    sample: _Sample | None = None
    try:
        with tarfile.open(path, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every member it has passed
                if not member.isdir():
                    key, suffix = _split_name(member.name)
                    if sample is not None and sample.key != key:
                        yield sample
                        sample = None
                    sample = sample or _Sample(key)
                    _add_member(tar, member, sample, suffix)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LorgnetteError(
            f"the tar cannot be read{f' behind {sample.key!r}' if sample else ''}: {error}",
            where=str(path),
            hint="get it again (it was cut off or damaged on its way), or unpack a .tar.gz first",
        ) from error
    if sample is not None:
        yield sample


def _split_name(name: str) -> tuple[str, str]:
    """(what the members of a sample share, the rest in small letters), split at the first dot of the file's name."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    first, _, suffix = last.partition(".")
    return f"{folder}{slash}{first}", suffix.lower()


def _add_member(tar: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, suffix: str) -> None:
    try:
        check_member_name(member.name)
        shown, said = f".{suffix}" in IMAGE_SUFFIXES, suffix in ("txt", "json")
        if not (shown or said):
            return
        stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if stream is None:
            raise LorgnetteError(f"{member.name!r} is a link or no ordinary file", hint="pack the file itself")
        if suffix in sample.images or suffix in sample.texts:
            raise LorgnetteError(f"{member.name!r} is there twice", hint="remove one of them")
        if shown:
            sample.images[suffix] = read_member(stream, member.name)
        else:
            sample.texts[suffix] = read_member(stream, member.name, max_bytes=_MAX_TEXT_BYTES)
    except tarfile.TarError:
        raise
    except LorgnetteError as error:
        sample.error = error
