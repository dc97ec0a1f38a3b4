"""Images that rows name by a URL, or by a file of their data set on a hub → files, each downloaded once.

While rows are read, `locate` gives each reference the path that its image will have; `download_images` then fetches
those that the chosen rows need. Images in a zip of the repository are extracted at once. An image whose own URL is dead
may come from a folder, a zip or another host (`images_from`), under its own name or its official COCO names. Knows
nothing about data formats.
"""

import hashlib
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorgnette.data.image_resolver import ImageResolver, ImageZip
from lorgnette.errors import LorgnetteError, SourceError, UsageError
from lorgnette.hub import file_signature, huggingface, modelscope
from lorgnette.hub.datasets import HubDataset
from lorgnette.hub.download import DownloadTask, OnProgress, download_files
from lorgnette.hub.http import HttpClient, redact_url
from lorgnette.hub.repository import RepositoryFile
from lorgnette.io.atomic import atomic_write
from lorgnette.io.image_signature import IMAGE_SUFFIXES

_SUBFOLDERS = ("", "train2014", "val2014", "train2017", "val2017", "images", "pictures")
_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """hub: the hub whose token its URL needs ("": none). coco_id: its number in COCO."""

    url: str
    hub: str = ""
    coco_id: int | None = None


class RemoteImages:
    """The images named so far: `images[file name]`."""

    def __init__(self, folder: Path, images: Mapping[str, RemoteImage], dataset: HubDataset | None = None) -> None:
        """dataset: the data set whose files references may name."""
        self.folder, self.images = folder, dict(images)
        self._dataset = dataset
        self._archives: list[ImageZip] | None = None
        self._by_path = {file.path: file for file in dataset.repository.files} if dataset else {}
        self._by_name: dict[str, list[RepositoryFile]] = {}
        for path, file in self._by_path.items():
            self._by_name.setdefault(PurePosixPath(path).name, []).append(file)

    def locate(self, reference: str, coco_id: int | None = None, *, folder: str = "") -> Path:
        """The path that the image will have. Raises LorgnetteError if it is no URL and no file of the repository.

        folder: that of the data file inside the repository ("" or "x/"), where relative paths start.
        """
        if reference.startswith(("http://", "https://")):
            image, own_name = RemoteImage(reference, "", coco_id), PurePosixPath(reference.partition("?")[0]).name
        else:
            file = self._find_file(reference, folder)
            if file is None and (extracted := self._extract(reference)) is not None:
                return extracted
            if file is None or self._dataset is None:
                raise LorgnetteError(
                    f"the image {reference!r} is neither a URL nor a file of the data set",
                    hint="correct the row, or report it on the data set's page",
                )
            hub = "" if file.is_external else self._dataset.repository.hub
            image, own_name = RemoteImage(file.url, hub, coco_id), file.path.rsplit("/", 1)[-1]
        name = self._choose_name(urllib.parse.unquote(own_name), image.url)
        self.images.setdefault(name, image)
        return self.folder / name

    def _find_file(self, reference: str, folder: str) -> RepositoryFile | None:
        """A file of the repository by its path, from the data file's folder or the usual ones, else by its name."""
        path = reference.removeprefix("./")
        for prefix in (folder, "", "images/", "data/"):
            if (file := self._by_path.get(prefix + path)) is not None:
                return file
        matches = self._by_name.get(PurePosixPath(path).name, [])
        return matches[0] if len(matches) == 1 else None

    def _extract(self, reference: str) -> Path | None:
        """The image extracted from a zip of the repository, all of which are downloaded for the first such image."""
        if self._archives is None:
            files = self._dataset.find_archives() if self._dataset else []
            self._archives = [ImageZip(self._dataset.download(file)) for file in files] if self._dataset else []
        for archive in self._archives:
            if member := archive.find_member(reference):
                resolver = ImageResolver(self.folder, images_to=self.folder)
                return resolver.extract(archive.read(member), PurePosixPath(member).suffix).path
        return None

    def _choose_name(self, own_name: str, url: str) -> str:
        """The source's own name without unsafe characters; with a hash of the URL if another image has that name."""
        name = PurePosixPath(_ODD.sub("_", PurePosixPath(own_name).name))
        has_suffix = name.suffix.lower() in IMAGE_SUFFIXES
        suffix = name.suffix.lower() if has_suffix else ".jpg"
        stem = (name.stem if has_suffix else name.name).strip("._")[:100]
        key = hashlib.sha256(url.encode()).hexdigest()
        file_name = f"{stem or key[:16]}{suffix}"
        known = self.images.get(file_name)
        return file_name if known is None or known.url == url else f"{stem}-{key[:8]}{suffix}"


@dataclass(frozen=True, slots=True)
class ImageDownload:
    """num_files: fetched now. failures: (message, hint) by file name."""

    num_files: int
    failures: dict[str, tuple[str, str]]


def download_images(
    images: Mapping[str, RemoteImage],
    folder: Path,
    client: HttpClient,
    *,
    fallback: "ImageFallback | None",
    split: str,
    sources: Mapping[str, str],
    on_progress: OnProgress,
    on_source: Callable[[str, str], None],
) -> ImageDownload:
    """Fetch each image into `folder`, from its URL or else from `fallback`.

    split: train or validation, for COCO's names. sources: where images came from that are here already.
    on_source(name, source): called for each image that arrived.
    """
    headers = {"modelscope": modelscope.get_headers, "hf": huggingface.get_headers}
    tokens = {hub: headers[hub]() for hub in {image.hub for image in images.values()} if hub}
    tasks = [
        DownloadTask(image.url, folder / name, headers=tokens.get(image.hub, {})) for name, image in images.items()
    ]
    result = download_files(tasks, client=client, on_progress=on_progress)
    failures = {failure.path.name: (failure.message, failure.hint) for failure in result.failures}
    for name, image in images.items():
        if name not in failures and name not in sources:
            on_source(name, urllib.parse.urlsplit(image.url).hostname or image.url)
    if failures and fallback is None:
        hint = "set --images-from to a folder, zip or URL that has the images"
        return ImageDownload(result.num_files, {name: (message, hint) for name, (message, _) in failures.items()})
    if failures and fallback is not None:
        missing = [
            MissingImage(folder / name, list_file_names(images[name].url, images[name].coco_id, split))
            for name in failures
        ]
        fallback.provide(missing, lambda path: on_source(path.name, fallback.where), on_progress)
        failures = {
            name: (f"{message}; not in {fallback.where} either", hint)
            for name, (message, hint) in failures.items()
            if not (folder / name).is_file()
        }
    return ImageDownload(result.num_files, failures)


@dataclass(frozen=True, slots=True)
class MissingImage:
    """An image that could not be fetched, and the names it may have elsewhere."""

    path: Path
    file_names: tuple[str, ...]


def list_file_names(url: str, coco_id: int | None, split: str) -> tuple[str, ...]:
    """Names an image may have elsewhere: the one in its URL, then COCO's two official ones."""
    own = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    names = [own] if Path(own).suffix.lower() in IMAGE_SUFFIXES else []
    if coco_id is None and (digits := re.search(r"(\d{12})(?=\.\w+$)", own)):
        coco_id = int(digits[1])
    if coco_id is not None:
        in_url = re.search(r"(train|val)\d{4}", url)
        part = in_url[1] if in_url else "val" if split.startswith("val") else "train"
        names += [f"COCO_{part}2014_{coco_id:012d}.jpg", f"{coco_id:012d}.jpg"]
    return tuple(dict.fromkeys(names))


class ImageFallback:
    """The folder, zip or URL of `images_from`. Raises UsageError if it is none of these."""

    def __init__(self, images_from: str, client: HttpClient) -> None:
        self.where, self._client = redact_url(images_from), client
        self._url = images_from.rstrip("/") if images_from.startswith(("http://", "https://")) else ""
        self._folder = Path(images_from).expanduser()
        if not self._url and not self._folder.exists():
            hint = "name a folder, zip or URL"
            raise UsageError("no such folder or zip", where=f"images_from {images_from}", hint=hint)
        self._zip = None if self._url or self._folder.is_dir() else ImageZip(self._folder)

    def provide(
        self, images: Sequence[MissingImage], on_arrival: Callable[[Path], None], on_progress: OnProgress
    ) -> None:
        """Write the available images to their paths and call `on_arrival` for each."""
        if self._url:
            self._download(images, on_progress)
        for image in images:
            if self._url and image.path.is_file():
                on_arrival(image.path)
            elif not self._url and any(_write_if_valid(image.path, content) for content in self._find(image)):
                on_arrival(image.path)
                on_progress(1, 0)

    def _find(self, image: MissingImage) -> Iterator[bytes]:
        """The contents of all files with one of the image's names."""
        for name in image.file_names:
            if self._zip is not None:
                if member := self._zip.find_member(name):
                    yield self._zip.read(member)
            else:
                paths = [self._folder / subfolder / name for subfolder in _SUBFOLDERS]
                yield from (path.read_bytes() for path in paths if path.is_file())

    def _download(self, images: Sequence[MissingImage], on_progress: OnProgress) -> None:
        for attempt in range(max((len(image.file_names) for image in images), default=0)):
            tasks = [
                DownloadTask(f"{self._url}/{urllib.parse.quote(image.file_names[attempt])}", image.path)
                for image in images
                if len(image.file_names) > attempt and not image.path.is_file()
            ]
            download_files(tasks, client=self._client, on_progress=on_progress)


def _write_if_valid(path: Path, content: bytes) -> bool:
    """Write an image atomically, if it is a complete one."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
            file_signature.check_file(temporary, path.name, where=path.name)
    except SourceError:
        return False
    return True
