"""WebDataset: a tar in which members with one key, their name up to the first dot, are a sample and a row.

    000123.jpg  000123.txt                  an image and its caption: the text, or
    000124.jpg  000124.json                 the JSON's caption, captions or text, also with a question of its own
    000125.0.jpg  000125.1.jpg  000125.json    a conversation: a record of any format, its images in order

The members of a sample are neighbors. Others (.cls, a caption of the .json beside a .txt) are named like the keys that
are not read. A conversation in the JSON comes before a text beside it. Images are extracted while the tar is read, by
default to `<tar>.images`. Read only.
"""

import tarfile
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from lorgnette.data import fields
from lorgnette.data.formats import captions, columns
from lorgnette.data.formats.records import list_formats, read_record
from lorgnette.data.image_resolver import check_member_name, read_member
from lorgnette.data.row_location import EMPTY_CAPTION, ColumnChoice, ReadOptions, Row, RowCounter, RowLocation
from lorgnette.data.text_files import decode_text, parse_json
from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.io.image_signature import IMAGE_SUFFIXES
from lorgnette.types import Example

_MAX_TEXT_BYTES = 16 * 1024**2
_TEXT_SUFFIXES = ("txt", "caption", "captions", "text", "cap")
_JSON_KEYS = ("id", "key", "__key__")
"""Of the JSON of a sample: its name."""
_MAX_HEADER_BYTES = 1 << 20
_CAPTION_HINT = "put the caption under caption, captions or text"


@dataclass(slots=True)
class _Sample:
    """What has been read of one sample, by suffix; an error makes its row unusable.

    others: suffixes that are not read.
    """

    key: str
    images: dict[str, bytes] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    error: LorgnetteError | None = None


class _Member(tarfile.TarInfo):
    """A member whose long name and other extended headers are small: tarfile reads them whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _EXTENDED_HEADERS and not 0 <= member.size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or header in it takes {member.size:,} bytes")
        return member


_EXTENDED_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def read_webdataset(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Sample by sample, never the whole tar."""
    for _, examples in stream_webdataset(path, options):
        yield from examples


def stream_webdataset(
    path: Path, options: ReadOptions, start: tuple[int, int] = (0, 0)
) -> Iterator[tuple[tuple[int, int], list[Row]]]:
    """((byte after the sample, number of samples so far), its examples or its problem), from such a pair on."""
    counter = RowCounter(path, options.require_no_name(path))
    counter.count = start[1]
    with closing(_read_samples(path, start[0], options.columns.caption)) as samples:
        for sample, end in samples:
            location = counter.next()
            read = partial(_read_sample, sample, location, options.columns)
            yield (end, counter.count), list(location.try_read(read))


def _read_sample(sample: _Sample, location: RowLocation, choice: ColumnChoice) -> list[Example]:
    if sample.error is not None:
        raise sample.error
    suffixes = _TEXT_SUFFIXES if choice.caption is None else (choice.caption,)
    suffix = next((suffix for suffix in suffixes if suffix in sample.texts), None)
    record = _read_json(sample, is_needed=suffix is None)
    if choice.caption is None and list_formats(tuple(record)):
        unread_keys = _name_members(sample, [*sample.images, "json"])
        examples = read_record(_insert_images(record, sample), location)
        return [replace(row, unread_keys=fields.join_keys(row.unread_keys, unread_keys)) for row in examples]
    # The requested image, or the only one; the requested text or key of the JSON, or a usual one.
    image_suffix = choice.image or next(iter(sample.images), "")
    if image_suffix not in sample.images or (choice.image is None and len(sample.images) > 1):
        names = ", ".join(sample.images) or "no image"
        hint = "give each sample one image (.jpg, .png, …), or name its suffix with --image-column"
        raise LorgnetteError(f"sample {sample.key!r} has {names}", hint=hint)
    caption, caption_keys = _read_caption(sample, suffix, record, choice)
    context = columns.read_context(record, taken=caption_keys)
    unread_keys = fields.join_keys(
        fields.check_row_keys(record, (*_JSON_KEYS, *caption_keys, *context.columns), marks=fields.TABLE_MARKS),
        _name_members(sample, [image_suffix, *([suffix] if suffix else []), *(["json"] if record else [])]),
    )
    if not fields.has_content(caption):  # before the image is extracted, so that an unusable sample leaves no file
        raise LorgnetteError(EMPTY_CAPTION, hint="write one, or remove the sample")
    image, name = location.extract_image(sample.images[image_suffix], image_suffix.rpartition(".")[2]), "the caption"
    return captions.build_examples(
        image, caption, location, name=name, id_=sample.key, context=context, unread_keys=unread_keys
    )


def _read_caption(
    sample: _Sample, suffix: str | None, record: Mapping[str, Any], choice: ColumnChoice
) -> tuple[object, list[str]]:
    """(the captions, the keys of the JSON that hold them). suffix: of the member with the text, if there is one."""
    if suffix is not None:
        text = captions.strip_line_end(decode_text(sample.texts[suffix], f"{sample.key}.{suffix}"))
        # The JSON often repeats the text.
        return text, [key for key, value in record.items() if isinstance(value, str) and value.strip() == text.strip()]
    known = {name: value for name, value in record.items() if columns.is_named(name, columns.KNOWN_NAMES)}
    key = choice.caption or columns.find_caption(columns.describe_columns(known), None) or ""
    if key not in record:
        keys = ", ".join(map(repr, list(record)[:8])) or "no key"
        raise LorgnetteError(f"{sample.key}.json holds {keys}", hint=_CAPTION_HINT)
    return record[key], [key]


def _name_members(sample: _Sample, read_suffixes: Collection[str]) -> tuple[str, ...]:
    """The sample's other members, as `Example.unread_keys` has them."""
    return tuple(
        f".{suffix}" for suffix in (*sample.images, *sample.texts, *sample.others) if suffix not in read_suffixes
    )


def _read_json(sample: _Sample, *, is_needed: bool) -> dict[str, Any]:
    """The JSON's object; {} if the sample has none and does not need it."""
    if "json" not in sample.texts and is_needed:
        raise LorgnetteError(f"sample {sample.key!r} has no caption", hint="put it into a .txt or .json member")
    record = parse_json(decode_text(sample.texts["json"], f"{sample.key}.json")) if "json" in sample.texts else {}
    if isinstance(record, dict):
        return record
    if is_needed:
        raise LorgnetteError(f"{sample.key}.json holds no object", hint=_CAPTION_HINT)
    return {}


def _insert_images(record: dict[str, Any], sample: _Sample) -> dict[str, Any]:
    """The record with the sample's images: in place of the names of its members, or all of them in order."""
    images = {suffix: {"bytes": content, "path": suffix} for suffix, content in sample.images.items()}
    names = {f"{PurePosixPath(sample.key).name}.{suffix}": image for suffix, image in images.items()} | images

    def insert(value: Any) -> Any:
        if isinstance(value, list):
            return [insert(item) for item in value]
        return names.get(PurePosixPath(value).name, value) if isinstance(value, str) else value

    keys = [key for key in ("image", "images") if record.get(key)]
    inserted = {key: insert(record[key]) for key in keys} if keys else {"images": list(images.values())}
    return {"id": sample.key, **record, **inserted}


def _read_samples(path: Path, start: int, caption_suffix: str | None) -> Generator[tuple[_Sample, int], None, None]:
    """(sample, byte after it) from the byte `start` on."""
    sample: _Sample | None = None
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(start)
            if start >= end > 0:
                return
            with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:", tarinfo=_Member) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps every member
                    if not member.isdir():
                        # The key of the sample and its member's suffix, split at the first dot of the file's name.
                        folder, slash, last = member.name.removeprefix("./").rpartition("/")
                        first, _, suffix = last.partition(".")
                        key, suffix = f"{folder}{slash}{first}", suffix.lower()
                        if sample is not None and sample.key != key:
                            yield sample, member.offset
                            sample = None
                        sample = sample or _Sample(key)
                        _add_member(tar, member, sample, suffix, caption_suffix)
    except (tarfile.TarError, OSError, EOFError, RecursionError) as error:
        message = f"the tar cannot be read{f' after {sample.key!r}' if sample else ''}: {error}"
        hint = "get it again (it was cut off or damaged on its way), or unpack a .tar.gz first"
        raise LorgnetteError(message, where=str(path), hint=hint) from error
    if sample is not None:
        yield sample, end


def _add_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, suffix: str, caption_suffix: str | None
) -> None:
    try:
        check_member_name(member.name)
        is_image = f".{suffix.rpartition('.')[2]}" in IMAGE_SUFFIXES
        is_text = suffix in ("json", *_TEXT_SUFFIXES, caption_suffix)
        if not (is_image or is_text):
            sample.others.append(suffix)
            return
        stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if stream is None:
            raise LorgnetteError(f"{member.name!r} is a link or no ordinary file", hint="pack the file itself")
        if suffix in sample.images or suffix in sample.texts:
            raise LorgnetteError(f"{member.name!r} is there twice", hint="remove one of them")
        if is_image:
            sample.images[suffix] = read_member(stream, member.name)
        else:
            sample.texts[suffix] = read_member(stream, member.name, max_bytes=_MAX_TEXT_BYTES)
    except (tarfile.TarError, SourceError):
        raise
    except LorgnetteError as error:
        sample.error = error
