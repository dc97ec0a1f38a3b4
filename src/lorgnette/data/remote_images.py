"""Images that rows name by a URL, or by a file of their data set on a hub → files, each downloaded once.

While rows are read, `locate` gives each reference the path that its image will have; `download_images` then fetches
those that the chosen rows need. Images in a zip of the repository are extracted at once. An image whose own URL is dead
may come from a folder, a zip or another host (`images_from`), under its own name or its official COCO names. Knows
nothing about data formats.
"""

import hashlib
import re
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorgnette.data.checks.name_matches import may_be_same
from lorgnette.data.download_journal import Journal
from lorgnette.data.image_resolver import ImageResolver, ImageZip
from lorgnette.errors import LorgnetteError, SourceError, UsageError
from lorgnette.hub import file_signature, huggingface, modelscope
from lorgnette.hub.datasets import HubDataset
from lorgnette.hub.download import DownloadTask, OnProgress, download_files
from lorgnette.hub.http import HttpClient, redact_url
from lorgnette.hub.repository import RepositoryFile
from lorgnette.io.atomic import atomic_write
from lorgnette.io.image_signature import IMAGE_SUFFIXES
from lorgnette.io.paths import get_base_name, suggest_path

_SUBFOLDERS = ("", "train2014", "val2014", "train2017", "val2017", "images", "pictures")
_COCO_NAME = re.compile(r"(\d{12})(?=\.\w+$)")
_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """hub: the hub whose token its URL needs ("": none). coco_id: its number in COCO. written: the reference in the
    data, if a file of the repository was found by its name alone."""

    url: str
    hub: str = ""
    coco_id: int | None = None
    written: str = ""


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
            image, own_name = RemoteImage(reference, "", coco_id), reference.partition("?")[0]
        elif self._dataset is not None and (match := self._find_file(reference, folder)):
            file, is_by_name = match
            hub = "" if file.is_external else self._dataset.repository.hub
            image, own_name = RemoteImage(file.url, hub, coco_id, reference if is_by_name else ""), file.path
        elif (extracted := self._extract(reference)) is not None:
            return extracted
        else:
            message = f"the image {reference!r} is neither a URL nor a file of the data set"
            raise LorgnetteError(message, hint="correct the row, or report it on the data set's page")
        # The source's own name without unsafe characters; with a hash of the URL if another image has that name.
        name = PurePosixPath(_ODD.sub("_", PurePosixPath(urllib.parse.unquote(own_name)).name))
        has_suffix = name.suffix.lower() in IMAGE_SUFFIXES
        suffix = name.suffix.lower() if has_suffix else ".jpg"
        stem = (name.stem if has_suffix else name.name).strip("._")[:100]
        key = hashlib.sha256(f"{image.url}{image.written}".encode()).hexdigest()
        file_name = f"{stem or key[:16]}{suffix}"
        other = self.images.get(file_name, image)
        if (other.url, other.written) != (image.url, image.written):
            file_name = f"{stem}-{key[:8]}{suffix}"
        self.images.setdefault(file_name, image)
        return self.folder / file_name

    def _find_file(self, reference: str, folder: str) -> tuple[RepositoryFile, bool] | None:
        """A file of the repository by its path, from the data file's folder or the usual ones, else by its name;
        whether by its name alone."""
        assert self._dataset is not None
        path = reference.removeprefix(f"{self._dataset.folder}/")
        if path != reference:  # a file of the repository that a reader has listed
            return (self._by_path[path], False) if path in self._by_path else None
        path = path.replace("\\", "/").removeprefix("./")
        for prefix in (folder, "", "images/", "data/"):
            if (file := self._by_path.get(prefix + path)) is not None:
                return file, False
        matches = self._by_name.get(get_base_name(path), [])
        return (matches[0], True) if len(matches) == 1 else None

    def _extract(self, reference: str) -> Path | None:
        """The image extracted from a zip of the repository, all of which are downloaded for the first such image."""
        if self._archives is None:
            data = self._dataset
            zips = data.repository.find_by_suffix([".zip"]) if data else []
            self._archives = [ImageZip(data.download(file)) for file in zips if file not in data.files] if data else []
        for archive in self._archives:
            if match := archive.find_member(reference):
                resolver = ImageResolver(self.folder, images_to=self.folder)
                return resolver.extract(archive.read(match.member), PurePosixPath(match.member).suffix).path
        return None


def download_images(
    images: Mapping[str, RemoteImage],
    journal: Journal,
    client: HttpClient,
    fallback: "ImageFallback | None",
    split: str,
    on_progress: OnProgress,
) -> tuple[int, dict[str, tuple[str, str]]]:
    """(number of images fetched now, (message, hint) of those that failed by file name).

    Each image comes from its URL, or else from `fallback`; the journal records which. split: train or validation, for
    COCO's names.
    """
    folder = journal.image_folder
    headers = {"modelscope": modelscope.get_headers, "hf": huggingface.get_headers}
    tokens = {hub: headers[hub]() for hub in {image.hub for image in images.values()} if hub}
    tasks = [
        DownloadTask(image.url, folder / name, headers=tokens.get(image.hub, {})) for name, image in images.items()
    ]
    result = download_files(tasks, client=client, on_progress=on_progress)
    failures = {path.name: (error.message, error.hint or "") for path, error in sorted(result.failures.items())}
    for name, image in images.items():
        if name not in failures and name not in journal.sources:
            journal.add_source(name, urllib.parse.urlsplit(image.url).hostname or image.url)
    if fallback is None:
        hint = "set --images-from to a folder, zip or URL that has the images"
        return result.num_files, {name: (message, hint) for name, (message, _) in failures.items()}
    names = {folder / name: list_file_names(images[name].url, images[name].coco_id, split) for name in failures}
    # A name that is no number in COCO is not enough if two images have it.
    counts = Counter(name for own in names.values() for name in own if not _COCO_NAME.search(name))
    shared = {name for name, count in counts.items() if count > 1}
    names = {path: tuple(name for name in own if name not in shared) for path, own in names.items()}
    for path in fallback.provide(names, on_progress):
        journal.add_source(path.name, fallback.where)
        del failures[path.name]
    where = f"not in {fallback.where} either"
    unclear = f"other images have the same name, by which {fallback.where} is searched"
    return result.num_files, {
        name: (f"{message}; {where if names[folder / name] else unclear}", hint)
        for name, (message, hint) in failures.items()
    }


def find_name_collisions(images: Mapping[str, RemoteImage]) -> dict[str, tuple[str, str]]:
    """File name → (message, hint) of different images for which the repository has one file, found by name alone."""
    by_url: dict[str, list[str]] = defaultdict(list)
    for name, image in images.items():
        if image.written:
            by_url[image.url].append(name)
    collisions: dict[str, tuple[str, str]] = {}
    for names in by_url.values():
        first, *others = names
        if any(not may_be_same(images[first].written, images[other].written) for other in others):
            message = "another image has the same file in the data set, found by its name alone"
            collisions |= dict.fromkeys(names, (message, "report it on the data set's page"))
    return collisions


def list_file_names(url: str, coco_id: int | None, split: str) -> tuple[str, ...]:
    """Names an image may have elsewhere: the one in its URL, then COCO's two official ones."""
    own = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    names = [own] if Path(own).suffix.lower() in IMAGE_SUFFIXES else []
    if coco_id is None and (digits := _COCO_NAME.search(own)):
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
            where = f"images_from {images_from}"
            hint = suggest_path(self._folder, "name a folder, zip or URL")
            raise UsageError("no such folder or zip", where=where, hint=hint)
        self._zip = None if self._url or self._folder.is_dir() else ImageZip(self._folder)

    def provide(self, images: Mapping[Path, Sequence[str]], on_progress: OnProgress) -> Iterator[Path]:
        """Write the images (path → names it may have here) that are available, and yield the path of each."""
        if self._url:
            for attempt in range(max(map(len, images.values()), default=0)):
                missing = {path: names for path, names in images.items() if attempt < len(names) and not path.is_file()}
                urls = {path: f"{self._url}/{urllib.parse.quote(names[attempt])}" for path, names in missing.items()}
                tasks = [DownloadTask(url, path) for path, url in urls.items()]
                download_files(tasks, client=self._client, on_progress=on_progress)
            yield from (path for path in images if path.is_file())
            return
        for path, names in images.items():
            if any(_write_if_valid(path, content) for name in names for content in self._find(name)):
                yield path
                on_progress(1, 0)

    def _find(self, name: str) -> Iterator[bytes]:
        """The contents of all files with this name."""
        if self._zip is None:
            paths = [self._folder / subfolder / name for subfolder in _SUBFOLDERS]
            yield from (path.read_bytes() for path in paths if path.is_file())
        elif match := self._zip.find_member(name):
            yield self._zip.read(match.member)


def _write_if_valid(path: Path, content: bytes) -> bool:
    """Write an image atomically, if it is a complete one."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
            file_signature.check_file(temporary, path.name, where=path.name)
    except SourceError:
        return False
    return True
