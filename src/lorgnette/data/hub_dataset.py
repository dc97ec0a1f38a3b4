"""A data set on a hub → a folder: `data.jsonl`, `images/` and `download.json`, read like any local data set.

Only what the chosen rows need is fetched: the first rows of a parquet file or tar, a complete table, and the images.
`data.formats` reads the rows, as it does for local files and folders. Every row is written to a journal as soon as its
embedded images are on disk, so that a restart after a kill continues after the last one, and a second run fetches
nothing. How to speak to a hub is known to `lorgnette.hub` only.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.download_journal import DATA_FILE, IMAGE_FOLDER, Journal, JournalRow
from lorgnette.data.formats import coco, llama_factory, stream_rows
from lorgnette.data.formats.parquet import draw_sample, stream_parquet
from lorgnette.data.portable_records import ANY_PROMPT, to_record
from lorgnette.data.remote_images import (
    ImageFallback,
    RemoteImage,
    RemoteImages,
    download_images,
    find_name_collisions,
)
from lorgnette.data.row_location import ColumnChoice, ReadOptions, Row, sample_rows
from lorgnette.data.text_files import read_json
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub.datasets import DatasetAddress, HubDataset, open_dataset, parse_address
from lorgnette.hub.download import OnProgress, ignore_progress
from lorgnette.hub.http import HttpClient, RetryPolicy, redact_url
from lorgnette.hub.repository import RepositoryFile
from lorgnette.io.atomic import atomic_write, write_json
from lorgnette.io.parse import read_config
from lorgnette.types import Example, Problem

OnMessage = Callable[[str], None]
_ReadRow = tuple[int, tuple[int, int], list[Row]]
"""A row of a data set: its file, the position after it, its examples or problem."""
_LASTING_FIELDS = ("revision", "num_rows", "num_examples", "num_images", "sources", "unread_keys")
"""Fields of a DownloadedDataset that are the same for a later call."""


@dataclass(frozen=True, slots=True)
class MissingRow:
    """A row that is not in data.jsonl, and why. image: its URL or file name."""

    where: str
    image: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class DownloadedDataset:
    """num_rows, num_examples, num_images: in the folder. num_files, num_bytes: fetched by this call.

    sources: number of images by where they came from. unread_keys: number of rows by a key that is not read.
    """

    path: Path
    revision: str
    num_rows: int
    num_examples: int
    num_images: int
    num_files: int
    num_bytes: int
    sources: dict[str, int]
    missing: tuple[MissingRow, ...]
    unread_keys: dict[str, int] = field(default_factory=dict)


def download_dataset(
    source: str,
    out: Path,
    *,
    max_rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    on_progress: OnProgress = ignore_progress,
    on_message: OnMessage = lambda text: None,
    num_workers: int = 8,
    retry_policy: RetryPolicy | None = None,
) -> DownloadedDataset:
    """`hf:NAME[@REVISION][:CONFIG][:SPLIT]` or `modelscope:NS/NAME[@REVISION][:SPLIT]` → the folder `out`.

    max_rows: the first N rows; sample: N rows drawn fairly by `seed`; neither: all. images_from: a folder, zip or URL
    for images whose own URL is dead. Raises LorgnetteError if the data set, or every row of it, cannot be fetched.
    """
    address = parse_address(source, split)
    if max_rows is not None and sample is not None:
        raise UsageError("--rows and --sample exclude each other", hint="give one of them")
    request = {"source": address.text, "image_column": image_column, "caption_column": caption_column}
    shown_images_from = images_from and redact_url(images_from)
    arguments = {"max_rows": max_rows, "sample": sample, "seed": seed, "images_from": shown_images_from}
    key = "first" if sample is None else f"sample-{sample}-seed-{seed}"
    with Journal.open(out, request, key) as journal:
        if (finished := _load_finished(out, arguments)) is not None:
            on_message(f"{address.text}: already in {out}, nothing to fetch")
            return finished
        with HttpClient(num_workers=num_workers, retry_policy=retry_policy) as client:
            fallback = ImageFallback(images_from, client) if images_from else None
            columns = ColumnChoice(image_column, caption_column)
            reader = _Reader(address, journal, client, columns, max_rows, sample, seed, on_progress, on_message)
            try:
                rows = reader.read()
                images = _list_known_images(rows)
                collisions = find_name_collisions(images)
                images = {name: image for name, image in images.items() if name not in collisions}
                num_files, failures = download_images(images, journal, client, fallback, address.split, on_progress)
                failures |= collisions
            finally:
                journal.update_state(num_bytes=journal.num_bytes + client.num_bytes)
        problems = [_find_problem(row, failures) for row in rows]
        missing = [problem for problem in problems if problem]
        write_json(out / "failed.json", [asdict(row) for row in missing])
        usable = [row for row, problem in zip(rows, problems, strict=True) if not problem]
        if not usable and missing:
            message = f"none of {len(missing):,} rows can be used: {missing[0].message}"
            raise LorgnetteError(message, where=missing[0].image or missing[0].where, hint=missing[0].hint)
        if not usable:
            raise LorgnetteError("the split has no rows", where=address.text, hint="take another split")
        dataset = _write_result(usable, tuple(missing), journal, arguments, num_files, client.num_bytes)
    for origin, count in dataset.sources.items():
        on_message(f"{count:,} images from {origin}")
    if missing:
        lost = f"{len(missing):,} of {len(rows):,} rows are missing: {missing[0].message}"
        on_message(f"{lost}; {out / 'failed.json'} lists them")
    else:
        (out / "failed.json").unlink()
    return dataset


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the chosen rows of a data set into its journal.

    entries: name → (the dataset_info.json that has this entry, the entry's file).
    """

    address: DatasetAddress
    journal: Journal
    client: HttpClient
    columns: ColumnChoice
    max_rows: int | None
    sample: int | None
    seed: int
    on_progress: OnProgress
    on_message: OnMessage
    entries: dict[str, tuple[RepositoryFile, RepositoryFile]] = field(default_factory=dict)

    def read(self) -> list[JournalRow]:
        """The chosen rows: those in the journal, then the data set's rows after them."""
        journal, count = self.journal, self.max_rows if self.sample is None else self.sample
        if journal.is_complete or (count is not None and len(journal.rows) >= count):
            return journal.rows[:count]
        dataset = open_dataset(
            self.address, self.client, revision=journal.revision, folder=journal.folder / "files",
            on_progress=self.on_progress, on_message=self.on_message, find_entries=self._find_entries,
        )  # fmt: skip
        journal.update_state(revision=dataset.repository.revision)
        if journal.rows:
            self.on_message(f"continuing after {journal.rows[-1].where}")
        images = RemoteImages(journal.image_folder, _list_known_images(journal.rows), dataset)
        read_rows = self._read_in_order if self.sample is None else self._read_sample
        for index, position, examples in read_rows(dataset, images):
            where = f"{dataset.files[index].path or dataset.repository.name}, row {position[1]}"
            row = _build_row(where, index, position, examples, images)
            journal.add_row(row)
            for name in (name for name, image in row.images.items() if not image[0]):
                self.on_progress(1, (images.folder / name).stat().st_size)
            if count is not None and len(journal.rows) >= count:
                return journal.rows
        journal.complete()
        return journal.rows

    def _find_entries(self, dataset: HubDataset) -> dict[str, RepositoryFile]:
        """The files that the entries of LLaMA-Factory's dataset_info.json name, if the repository has one."""
        for info in dataset.repository.find_by_suffix(["dataset_info.json"]):
            path = dataset.download(info)
            try:
                value = read_json(path)
            except LorgnetteError:  # of another tool
                continue
            is_ours = isinstance(value, dict) and llama_factory.is_dataset_info(value)
            for name, entry in value.items() if is_ours else ():
                table = posixpath.join(posixpath.dirname(info.path), str(entry.get("file_name")))
                if file := dataset.repository.find_file(posixpath.normpath(table)):
                    self.entries[name] = info, file
        return {name: file for name, (_, file) in self.entries.items()}

    def _open_file(self, dataset: HubDataset, index: int, images: RemoteImages) -> tuple[Path, ReadOptions]:
        file, name = dataset.files[index], None
        path, start = dataset.open_file(index, self.max_rows), file
        names = [name for name, (_, table) in self.entries.items() if table == file]
        if names:
            name = dataset.split if dataset.split in names else names[0]
            start = self.entries[name][0]
            path = dataset.folder / start.path
        elif path.suffix.lower() == ".json" and dataset.word:
            # A split inside the file.
            value = read_json(path)
            has_splits = isinstance(value, dict) and coco.is_karpathy(value)
            name = dataset.word if has_splits or not dataset.split else None
        locate = partial(images.locate, folder="".join(start.path.rpartition("/")[:2]))
        options = ReadOptions(
            ANY_PROMPT, name, images_to=images.folder, columns=self.columns, locate_image=locate,
            on_columns=lambda text: self.on_message(f"columns    {text}"),
        )  # fmt: skip
        # data.jsonl keeps the blanks; they are removed when it is read.
        return path, replace(options, source=Path(file.path), trim=False)

    def _read_in_order(self, dataset: HubDataset, images: RemoteImages) -> Iterator[_ReadRow]:
        """All rows in order, after those in the journal."""
        last = self.journal.rows[-1] if self.journal.rows else None
        first = last.file if last else 0
        for index in range(first, len(dataset.files)):
            start = (last.position[0], last.position[1]) if last and index == first else (0, 0)
            for position, examples in stream_rows(*self._open_file(dataset, index, images), start):
                yield index, position, examples

    def _read_sample(self, dataset: HubDataset, images: RemoteImages) -> Iterator[_ReadRow]:
        """The sample's rows in order, after those in the journal."""
        done, count = len(self.journal.rows), self.sample or 0
        if dataset.suffix == ".tar":
            message = "a fair sample of WebDataset shards would fetch all of them"
            raise LorgnetteError(message, where=dataset.repository.where, hint="take the first rows with --rows")
        files = [self._open_file(dataset, index, images) for index in range(len(dataset.files))]
        if dataset.suffix != ".parquet":
            rows = (
                (index, position, examples)
                for index, (path, options) in enumerate(files)
                for position, examples in stream_rows(path, options)
            )
            yield from sample_rows(rows, count, self.seed)[done:]
            return
        numbers, message = draw_sample([path for path, _ in files], count, self.seed)
        self.on_message(message)
        for index, (path, options) in enumerate(files):
            if wanted := [number for file, number in numbers[done:] if file == index]:
                for number, examples in stream_parquet(path, options, wanted):
                    yield index, (number + 1, number + 1), examples


def _build_row(
    where: str, index: int, position: tuple[int, int], examples: list[Row], images: RemoteImages
) -> JournalRow:
    for row in examples:
        if isinstance(row, Problem):
            return JournalRow(where, index, list(position), message=row.message, hint=row.hint)
    usable = [row for row in examples if isinstance(row, Example)]
    names = dict.fromkeys(image.path.name for example in usable for image in example.images)
    remote = {name: images.images.get(name, RemoteImage("")) for name in names}
    sources = {name: [image.url, image.hub, image.coco_id, image.written] for name, image in remote.items()}
    records = [to_record(example, _name_image) for example in usable]
    unread_keys = sorted({key for example in usable for key in example.unread_keys})
    return JournalRow(where, index, list(position), records, sources, unread_keys=unread_keys)


def _name_image(path: Path) -> str:
    return f"{IMAGE_FOLDER}/{path.name}"


def _list_known_images(rows: Iterable[JournalRow]) -> dict[str, RemoteImage]:
    return {name: RemoteImage(*image) for row in rows for name, image in row.images.items() if image[0]}


def _find_problem(row: JournalRow, failures: dict[str, tuple[str, str]]) -> MissingRow | None:
    """Why the row cannot be used; None: it can."""
    if row.message:
        return MissingRow(row.where, "", row.message, row.hint)
    failed = next((name for name in row.images if name in failures), None)
    return MissingRow(row.where, redact_url(row.images[failed][0]), *failures[failed]) if failed else None


def _write_result(
    rows: list[JournalRow],
    missing: tuple[MissingRow, ...],
    journal: Journal,
    arguments: dict[str, Any],
    num_files: int,
    num_bytes: int,
) -> DownloadedDataset:
    """data.jsonl and download.json."""
    out = journal.out
    records = [record for row in rows for record in row.records]
    with atomic_write(out / DATA_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    images = {name: journal.sources.get(name, journal.source) for row in rows for name in row.images}
    counts = (len(rows), len(records), len(images), num_files, num_bytes)
    unread_keys = Counter(key for row in rows for key in row.unread_keys)
    dataset = DownloadedDataset(
        out / DATA_FILE, journal.revision, *counts, dict(Counter(images.values())), missing, dict(unread_keys)
    )  # fmt: skip
    manifest = {
        "source": journal.source,
        "arguments": arguments,
        **{name: getattr(dataset, name) for name in _LASTING_FIELDS},
        "image_bytes": _sum_image_bytes(out, images),
        "fetched_bytes": journal.num_bytes,
        "num_missing": len(missing),
        "images": dict(sorted(images.items())),
    }
    write_json(out / "download.json", manifest)
    return dataset


def _sum_image_bytes(out: Path, images: Iterable[str]) -> int:
    return sum(path.stat().st_size for name in images if (path := out / IMAGE_FOLDER / name).is_file())


def _load_finished(out: Path, arguments: dict[str, Any]) -> DownloadedDataset | None:
    """The result of an earlier call with the same arguments, if all its files are still there."""
    try:
        manifest = read_config(out / "download.json", "remove the folder")
        is_whole = manifest["arguments"] == arguments and not manifest["num_missing"] and (out / DATA_FILE).is_file()
        if not is_whole or _sum_image_bytes(out, manifest["images"]) != manifest["image_bytes"]:
            return None
        fields = {name: manifest[name] for name in _LASTING_FIELDS}
    except (OSError, LorgnetteError, KeyError, TypeError):
        return None
    return DownloadedDataset(out / DATA_FILE, **fields, num_files=0, num_bytes=0, missing=())
