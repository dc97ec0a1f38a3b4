"""A folder → captions: pictures with a metadata.csv or .jsonl, with a .txt each, or shards of a WebDataset.

    metadata.csv: file_name,caption    ·    0001.jpg + 0001.txt    ·    train-000000.tar, train-000001.tar, …

Of a folder of pictures and texts every one is a row, by name; a text without its picture is a Problem, as is a picture
without its text. Read only.
"""

from collections.abc import Iterator
from pathlib import Path

from lorgnette.data import row_location
from lorgnette.data.formats import captions, csv, json_records, webdataset
from lorgnette.data.images import IMAGE_SUFFIXES
from lorgnette.data.text_files import decode_text
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_METADATA_FILES = ("metadata.csv", "metadata.jsonl")


def read_folder(path: Path, options: row_location.ReadOptions) -> Iterator[row_location.Row]:
    """What the folder is shows by the files right in it; hidden ones are passed over."""
    options = options.require_no_name(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    metadata = [file for file in files if file.name in _METADATA_FILES]
    if len(metadata) > 1:
        raise UsageError(
            "both metadata.csv and metadata.jsonl", where=str(path), hint="name the file instead of the folder"
        )
    if metadata:
        return _read_metadata(metadata[0], options)
    if tars := [file for file in files if file.suffix.lower() == ".tar"]:
        return (row for tar in tars for row in webdataset.read_shard(tar, options))
    pictures = {file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    if not _has_pairs(pictures, texts):
        raise UsageError(
            "a folder, not a data file, and nothing in it says what its pictures show",
            where=str(path),
            hint="name a file in it, or add metadata.csv (file_name,caption) or a .txt to each picture",
        )
    return _read_pairs(path, pictures, texts, options)


def is_dataset(path: Path) -> bool:
    """Whether a file in the folder says what its pictures show; if none does, it is a folder of bare pictures."""
    files = {file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")}
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    spoken = any(file.name in _METADATA_FILES or file.suffix.lower() == ".tar" for file in files)
    return spoken or _has_pairs({file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}, texts)


def _has_pairs(images: set[Path], texts: dict[Path, Path]) -> bool:
    return any(picture.with_suffix("") in texts for picture in images)


def _read_metadata(metadata: Path, options: row_location.ReadOptions) -> Iterator[row_location.Row]:
    if metadata.suffix == ".csv":
        return csv.read_csv(metadata, options)
    return json_records.read_records(metadata, row_location.create_row_counter(metadata, options), captions.read_record)


def _read_pairs(
    path: Path, images: set[Path], texts: dict[Path, Path], options: row_location.ReadOptions
) -> Iterator[row_location.Row]:
    places = row_location.create_row_counter(path, options)
    shown = {picture.with_suffix("") for picture in images}
    for file in sorted(images | {text for stem, text in texts.items() if stem not in shown}):
        yield from _read_pair(file, texts.get(file.with_suffix("")), places.next())


def _read_pair(file: Path, text: Path | None, location: row_location.RowLocation) -> Iterator[row_location.Row]:
    def made() -> list[Example]:
        if text is None:
            raise LorgnetteError(f"{file.name} has no text", hint=f"write {file.stem}.txt, or remove the picture")
        if text == file:
            raise LorgnetteError(f"{file.name} has no picture", hint="add it, or move the text elsewhere")
        try:
            said = decode_text(text.read_bytes(), text.name).strip()
        except OSError as error:
            raise LorgnetteError(f"{text.name} cannot be read: {error.strerror}", hint="check the file") from error
        picture = location.resolve_image(str(file), "the picture")
        return captions.build_examples(picture, said, location, name="the text", id_=file.name)

    return location.try_read(made)
