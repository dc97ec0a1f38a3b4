"""A data set on a hub → a folder: `data.jsonl`, `images/` and `download.json`, read like any local data set.

Only what the chosen rows need is fetched: the first rows of a parquet file or tar, a complete table, and the images.
`data.formats` reads the rows, as it does for local files. Every row is written to a journal as soon as its embedded
images are on disk, so that a restart after a kill continues after the last one, and a second run fetches nothing. How
to speak to a hub is known to `lorgnette.hub` only.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorgnette.data.download_journal import DATA_FILE, IMAGE_FOLDER, Journal, JournalRow
from lorgnette.data.formats import captions, stream_rows
from lorgnette.data.formats.parquet import draw_sample, stream_parquet
from lorgnette.data.remote_images import ImageDownload, ImageFallback, RemoteImage, RemoteImages, download_images
from lorgnette.data.row_location import ColumnChoice, ReadOptions, Row, sample_rows
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub.datasets import DatasetAddress, HubDataset, open_dataset, parse_address
from lorgnette.hub.download import OnProgress, ignore_progress
from lorgnette.hub.http import HttpClient, RetryPolicy, redact_url
from lorgnette.io.atomic import atomic_write, write_json
from lorgnette.types import Example, Problem, Turn

OnMessage = Callable[[str], None]
_PROMPT = "\ue000prompt\ue000"
"""Stands for the prompt of captions while rows are read, because data.jsonl is read with any prompt."""
_LASTING_FIELDS = ("revision", "num_rows", "num_examples", "num_images", "sources")
"""Fields of a DownloadedDataset that are the same for a later call."""
_DEFAULT_ID = re.compile(r"identity_\d+(_\d+)?")


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

    sources: number of images by where they came from.
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


@dataclass(frozen=True, slots=True)
class RowChoice:
    """The first `max_rows`, or `sample` drawn fairly by `seed`; both None: all."""

    max_rows: int | None = None
    sample: int | None = None
    seed: int = 0

    @property
    def count(self) -> int | None:
        return self.max_rows if self.sample is None else self.sample

    @property
    def key(self) -> str:
        """The same for choices of which one is the beginning of the other."""
        return "first" if self.sample is None else f"sample-{self.sample}-seed-{self.seed}"


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
    choice = RowChoice(max_rows, sample, seed)
    request = {"source": address.text, "image_column": image_column, "caption_column": caption_column}
    with Journal.open(out, request, choice.key) as journal:
        arguments = {**asdict(choice), "images_from": images_from and redact_url(images_from)}
        if (finished := _load_finished(out, arguments)) is not None:
            on_message(f"{address.text}: already in {out}, nothing to fetch")
            return finished
        with HttpClient(num_workers=num_workers, retry_policy=retry_policy) as client:
            fallback = ImageFallback(images_from, client) if images_from else None
            columns = ColumnChoice(image_column, caption_column)
            try:
                chosen = _Collector(address, journal, choice, columns, client, on_progress, on_message).collect()
                images = _list_known_images(chosen)
                download = download_images(
                    images, out / IMAGE_FOLDER, client, fallback=fallback, split=address.split, sources=journal.sources,
                    on_progress=on_progress, on_source=journal.add_source,
                )  # fmt: skip
            finally:
                journal.add_bytes(client.num_bytes)
        return _write_result(chosen, download, journal, arguments, client.num_bytes, on_message)


@dataclass(frozen=True, slots=True)
class _Collector:
    """Reads the chosen rows of a data set into its journal."""

    address: DatasetAddress
    journal: Journal
    choice: RowChoice
    columns: ColumnChoice
    client: HttpClient
    on_progress: OnProgress
    on_message: OnMessage

    def collect(self) -> list[JournalRow]:
        """The chosen rows: those in the journal, then the data set's rows after them."""
        known, count = self.journal.rows, self.choice.count
        if self.journal.is_complete or (count is not None and len(known) >= count):
            return known[:count]
        dataset = open_dataset(
            self.address, self.client, revision=self.journal.revision, folder=self.journal.folder / "files",
            on_progress=self.on_progress, on_message=self.on_message,
        )  # fmt: skip
        self.journal.pin_revision(dataset.repository.revision)
        if known:
            self.on_message(f"continuing after {known[-1].where}")
        images = RemoteImages(self.journal.out / IMAGE_FOLDER, _list_known_images(known), dataset)
        for row in self._read_first(dataset, images) if self.choice.sample is None else self._sample(dataset, images):
            self.journal.add_row(row)
            for name in (name for name, image in row.images.items() if not image[0]):
                self.on_progress(1, (images.folder / name).stat().st_size)
            if count is not None and len(self.journal.rows) >= count:
                return self.journal.rows
        self.journal.complete()
        return self.journal.rows

    def _read_first(self, dataset: HubDataset, images: RemoteImages) -> Iterator[JournalRow]:
        """All rows in order, after those in the journal."""
        last = self.journal.rows[-1] if self.journal.rows else None
        first = last.file if last else 0
        for index in range(first, len(dataset.files)):
            start = (last.position[0], last.position[1]) if last and index == first else (0, 0)
            path, options = dataset.open_file(index), self._create_options(dataset, index, images)
            for position, examples in stream_rows(path, options, start):
                yield self._create_row(dataset, index, position, examples, images)

    def _sample(self, dataset: HubDataset, images: RemoteImages) -> Iterator[JournalRow]:
        """The sample's rows in order, after those in the journal."""
        assert self.choice.sample is not None
        done, count, seed = len(self.journal.rows), self.choice.sample, self.choice.seed
        if dataset.suffix == ".tar":
            raise LorgnetteError(
                "a fair sample of WebDataset shards would fetch all of them",
                where=dataset.repository.where,
                hint="take the first rows with --rows",
            )
        paths = [dataset.open_file(index) for index in range(len(dataset.files))]
        options = [self._create_options(dataset, index, images) for index in range(len(paths))]
        if dataset.suffix == ".parquet":
            numbers, message = draw_sample(paths, count, seed)
            self.on_message(message)
            for index, path in enumerate(paths):
                wanted = [number for file, number in numbers[done:] if file == index]
                for number, examples in stream_parquet(path, options[index], wanted) if wanted else ():
                    yield self._create_row(dataset, index, (number + 1, number + 1), examples, images)
            return
        every = (
            (index, position, examples)
            for index, path in enumerate(paths)
            for position, examples in stream_rows(path, options[index])
        )
        for index, position, examples in sample_rows(every, count, seed)[done:]:
            yield self._create_row(dataset, index, position, examples, images)

    def _create_options(self, dataset: HubDataset, index: int, images: RemoteImages) -> ReadOptions:
        folder = "".join(dataset.files[index].path.rpartition("/")[:2])
        locate = partial(images.locate, folder=folder)
        return ReadOptions(
            prompt=_PROMPT,
            images_to=images.folder,
            columns=self.columns,
            locate_image=locate,
            source=Path(dataset.files[index].path),
        )

    def _create_row(
        self, dataset: HubDataset, index: int, position: tuple[int, int], examples: list[Row], images: RemoteImages
    ) -> JournalRow:
        where = f"{dataset.files[index].path}, row {position[1]}"
        problem = next((row for row in examples if isinstance(row, Problem)), None)
        if problem is not None:
            return JournalRow(where, index, list(position), message=problem.message, hint=problem.hint)
        usable = [row for row in examples if isinstance(row, Example)]
        names = dict.fromkeys(image.path.name for example in usable for image in example.images)
        remote = {name: images.images.get(name) for name in names}
        return JournalRow(
            where,
            index,
            list(position),
            [_to_record(example) for example in usable],
            {
                name: [image.url, image.hub, image.coco_id] if image else ["", "", None]
                for name, image in remote.items()
            },
        )


def _to_record(example: Example) -> dict[str, Any]:
    """The example as data.jsonl has it: image and caption, or messages whose images have relative paths."""
    id_ = {} if _DEFAULT_ID.fullmatch(example.id) else {"id": example.id}
    try:
        record = captions.to_record(example, _PROMPT)
    except LorgnetteError:
        return {**id_, "messages": [{"role": turn.role, "content": _list_parts(turn)} for turn in example.turns]}
    image, caption = (record[column] for column in (captions.IMAGE_COLUMNS[0], captions.CAPTION_COLUMNS[0]))
    return {**id_, captions.IMAGE_COLUMNS[0]: _get_relative_path(image), captions.CAPTION_COLUMNS[0]: caption}


def _list_parts(turn: Turn) -> str | list[dict[str, str]]:
    if turn.role != "user":
        return turn.text
    return [
        {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "image", "path": _get_relative_path(part.path)}
        for part in turn.parts
    ]  # fmt: skip


def _get_relative_path(path: Path | str) -> str:
    return f"{IMAGE_FOLDER}/{Path(path).name}"


def _list_known_images(known: Iterable[JournalRow]) -> dict[str, RemoteImage]:
    return {name: RemoteImage(*image) for row in known for name, image in row.images.items() if image[0]}


def _write_result(
    chosen: list[JournalRow],
    download: ImageDownload,
    journal: Journal,
    arguments: dict[str, Any],
    num_bytes: int,
    on_message: OnMessage,
) -> DownloadedDataset:
    """data.jsonl, download.json, and failed.json if rows are missing."""
    out = journal.out
    problems = [(row, _find_problem(row, download)) for row in chosen]
    missing = tuple(problem for _, problem in problems if problem is not None)
    usable = [row for row, problem in problems if problem is None]
    write_json(out / "failed.json", [asdict(row) for row in missing])
    if not usable:
        raise _build_empty_error(missing, journal.source)
    records = [record for row in usable for record in row.records]
    with atomic_write(out / DATA_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    images = {name: journal.sources.get(name, journal.source) for row in usable for name in row.images}
    dataset = DownloadedDataset(
        path=out / DATA_FILE,
        revision=journal.revision,
        num_rows=len(usable),
        num_examples=len(records),
        num_images=len(images),
        num_files=download.num_files,
        num_bytes=num_bytes,
        sources=dict(Counter(images.values())),
        missing=missing,
    )
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
    for source, count in dataset.sources.items():
        on_message(f"{count:,} images from {source}")
    if missing:
        lost = f"{len(missing):,} of {len(chosen):,} rows are missing: {missing[0].message}"
        on_message(f"{lost}; {out / 'failed.json'} lists them")
    else:
        (out / "failed.json").unlink()
    return dataset


def _find_problem(row: JournalRow, download: ImageDownload) -> MissingRow | None:
    """Why the row cannot be used; None: it can."""
    if row.message:
        return MissingRow(row.where, "", row.message, row.hint)
    for name, (url, *_) in row.images.items():
        if name in download.failures:
            return MissingRow(row.where, redact_url(url), *download.failures[name])
    return None


def _build_empty_error(missing: tuple[MissingRow, ...], source: str) -> LorgnetteError:
    if not missing:
        return LorgnetteError("the split has no rows", where=source, hint="take another split")
    first = missing[0]
    message = f"none of {len(missing):,} rows can be used: {first.message}"
    return LorgnetteError(message, where=first.image or first.where, hint=first.hint)


def _sum_image_bytes(out: Path, images: Iterable[str]) -> int:
    return sum(path.stat().st_size for name in images if (path := out / IMAGE_FOLDER / name).is_file())


def _load_finished(out: Path, arguments: dict[str, Any]) -> DownloadedDataset | None:
    """The result of an earlier call with the same arguments, if all its files are still there."""
    try:
        manifest = json.loads((out / "download.json").read_text(encoding="utf-8"))
        is_whole = manifest["arguments"] == arguments and not manifest["num_missing"] and (out / DATA_FILE).is_file()
        if not is_whole or _sum_image_bytes(out, manifest["images"]) != manifest["image_bytes"]:
            return None
        fields = {name: manifest[name] for name in _LASTING_FIELDS}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DownloadedDataset(out / DATA_FILE, **fields, num_files=0, num_bytes=0, missing=())
