"""A folder → captions: pictures with a metadata.csv or .jsonl, with a .txt each, or shards of a WebDataset.

    metadata.csv: file_name,caption    ·    0001.jpg + 0001.txt    ·    train-000000.tar, train-000001.tar, …

Of a folder of pictures and texts every one is a row, by name; a text without its picture is a Problem, as is a picture
without its text. Read only.
"""

from collections.abc import Iterator
from pathlib import Path

from lorgnette.data import rows
from lorgnette.data.formats import captions, csv, json_records, webdataset
from lorgnette.data.images import SUFFIXES
from lorgnette.data.text_files import decoded
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_METADATA = ("metadata.csv", "metadata.jsonl")


def examples(path: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    """What the folder is shows by the files right in it; hidden ones are passed over."""
    asked = asked.unnamed(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    metadata = [file for file in files if file.name in _METADATA]
    if len(metadata) > 1:
        raise UsageError(
            "both metadata.csv and metadata.jsonl", where=str(path), remedy="name the file instead of the folder"
        )
    if metadata:
        return _described(metadata[0], asked)
    if tars := [file for file in files if file.suffix.lower() == ".tar"]:
        return (row for tar in tars for row in webdataset.examples(tar, asked))
    pictures = {file for file in files if file.suffix.lower() in SUFFIXES}
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    if not _paired(pictures, texts):
        raise UsageError(
            "a folder, not a data file, and nothing in it says what its pictures show",
            where=str(path),
            remedy="name a file in it, or add metadata.csv (file_name,caption) or a .txt to each picture",
        )
    return _pairs(path, pictures, texts, asked)


def speaks(path: Path) -> bool:
    """Whether a file in the folder says what its pictures show; if none does, it is a folder of bare pictures."""
    files = {file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")}
    texts = {file.with_suffix(""): file for file in files if file.suffix.lower() == ".txt"}
    spoken = any(file.name in _METADATA or file.suffix.lower() == ".tar" for file in files)
    return spoken or _paired({file for file in files if file.suffix.lower() in SUFFIXES}, texts)


def _paired(pictures: set[Path], texts: dict[Path, Path]) -> bool:
    return any(picture.with_suffix("") in texts for picture in pictures)


def _described(metadata: Path, asked: rows.Asked) -> Iterator[rows.Row]:
    if metadata.suffix == ".csv":
        return csv.examples(metadata, asked)
    return json_records.examples(metadata, rows.places(metadata, asked), captions.examples)


def _pairs(path: Path, pictures: set[Path], texts: dict[Path, Path], asked: rows.Asked) -> Iterator[rows.Row]:
    places = rows.places(path, asked)
    shown = {picture.with_suffix("") for picture in pictures}
    for file in sorted(pictures | {text for stem, text in texts.items() if stem not in shown}):
        yield from _pair(file, texts.get(file.with_suffix("")), places.next())


def _pair(file: Path, text: Path | None, place: rows.Place) -> Iterator[rows.Row]:
    def made() -> list[Example]:
        if text is None:
            raise LorgnetteError(f"{file.name} has no text", remedy=f"write {file.stem}.txt, or remove the picture")
        if text == file:
            raise LorgnetteError(f"{file.name} has no picture", remedy="add it, or move the text elsewhere")
        try:
            said = decoded(text.read_bytes(), text.name).strip()
        except OSError as error:
            raise LorgnetteError(f"{text.name} cannot be read: {error.strerror}", remedy="check the file") from error
        picture = place.picture(str(file), "the picture")
        return captions.described(picture, said, place, name="the text", id_=file.name)

    return place.judged(made)
