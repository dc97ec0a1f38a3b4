"""The images of requests: data URL → a file that was looked at, in a private temporary folder.

A file's name is the SHA-256 of its bytes: nothing that a client says becomes a path, and an image that comes again is
there already. Only the header is read here. The folder is bounded: the images used longest ago leave.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorgnette.data.image_resolver import decode_base64
from lorgnette.data.images import MAX_ASPECT, ImageTooLargeError, detect_other_format, read_image_size
from lorgnette.errors import LorgnetteError
from lorgnette.io.image_signature import HEAD_BYTES, SUFFIXES, detect_image_format
from lorgnette.server.api_errors import ApiError
from lorgnette.server.image_parts import has_too_many_parts

MAX_IMAGES = 8
"""Of one request."""
MAX_PIXELS = 50_000_000
"""Of one image."""
MAX_BYTES = 256 * 2**20
"""Of the folder. The requests that are encoded at once, four at most, need less than half of it."""
FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "avif", "heic")
"""What cameras, phones and browsers write. Training reads more formats, from files that its user chose."""
_DATA_URL = re.compile(r"\s*data:([a-z0-9.+-]+/[a-z0-9.+-]+)?(?:;[a-z0-9._=+-]+)*;base64,", re.IGNORECASE)
_MAX_HEAD_CHARS = 200
"""Of a data URL, before its bytes."""
_PREFIX = "lorgnette-images-"
_NEW_SECONDS = 60
"""For so long a folder may be one that is not locked yet."""


class UploadStore:
    """The folder, for any thread. It is gone after `close`, or when the process ends; that of a killed process, when
    the next one begins."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        _remove_leftovers(Path(tempfile.gettempdir()))
        self._temporary = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._lock_descriptor = _try_lock(self.folder)
        self._sizes: OrderedDict[Path, int] = OrderedDict()
        self._kept: dict[int, set[Path]] = {}
        """Thread → the files that it needs now."""
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        with self._lock:
            return sum(self._sizes.values())

    def add(self, data_url: str, where: str, model_number: int) -> Path:
        """The file of an image; equal bytes for the same model number have the same file.

        where: the key of the request, for errors. model_number: different numbers have different folders, since the
        features of an image are kept by its path. Raises ApiError 400 for what is no image within the limits.
        """
        content = decode_data_url(data_url, where)
        image_format = require_format(content, where)
        path = self.folder / f"{model_number}" / f"{hashlib.sha256(content).hexdigest()}{SUFFIXES[image_format]}"
        if self._has(path):
            return path
        new = self.folder / f"{threading.get_ident()}{SUFFIXES[image_format]}"
        try:
            new.write_bytes(content)
            check_image(new, where)
            with self._lock:
                path.parent.mkdir(exist_ok=True)
                new.replace(path)
                self._sizes[path] = len(content)
                self._move_to_end(path)
        except OSError as error:
            message = f"the image cannot be stored: {error.strerror or error}"
            raise ApiError(500, message, type="server_error") from error
        finally:
            new.unlink(missing_ok=True)
        return path

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Evict nothing that this thread adds inside the block, until the block ends."""
        thread = threading.get_ident()
        with self._lock:
            self._kept[thread] = set()
        try:
            yield
        finally:
            with self._lock:
                del self._kept[thread]
                self._evict()

    def close(self) -> None:
        """Delete the folder."""
        with self._lock:
            self._sizes.clear()
            self._temporary.cleanup()
            if self._lock_descriptor is not None:
                os.close(self._lock_descriptor)
                self._lock_descriptor = None

    def _has(self, path: Path) -> bool:
        with self._lock:
            if path in self._sizes:
                self._move_to_end(path)
            return path in self._sizes

    def _move_to_end(self, path: Path) -> None:
        """Make it the last file to leave. Without `keep` around it, it may leave at the next call."""
        self._sizes.move_to_end(path)
        self._kept.get(threading.get_ident(), set()).add(path)
        self._evict()

    def _evict(self) -> None:
        kept = set[Path]().union(*self._kept.values())
        excess = sum(self._sizes.values()) - self._max_bytes
        for path in list(self._sizes)[:-1]:
            if excess <= 0:
                return
            if path not in kept:
                excess -= self._sizes.pop(path)
                path.unlink(missing_ok=True)


def _try_lock(folder: Path) -> int | None:
    """A descriptor that keeps the folder locked until it is closed or the process ends. None if another process has the
    lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftovers(parent: Path) -> None:
    """Delete the folders of processes that were killed: nobody has their locks."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or another server deletes it
            if (descriptor := _try_lock(folder)) is None:
                continue
            status = os.fstat(descriptor)
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _NEW_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def decode_data_url(data_url: str, where: str) -> bytes:
    """The bytes in a data URL. Raises ApiError 400 for any other URL: nothing is fetched or opened for a client."""
    match = _DATA_URL.match(data_url[:_MAX_HEAD_CHARS])
    if match is None:
        scheme, colon, _ = data_url.lstrip()[:20].partition(":")
        reason = "with base64" if scheme.lower() == "data" else f"not {scheme.lower()}:" if colon else "no path"
        message = f"an image is taken as data:image/…;base64,… only, {reason}; send the bytes of the image"
        raise ApiError(400, message, param=where, code="invalid_image_url")
    if match[1] and not match[1].lower().startswith("image/"):
        raise ApiError(400, f"{match[1]} is not the type of an image", param=where, code="invalid_image_url")
    try:
        return decode_base64(data_url[match.end() :], "the data URL")
    except LorgnetteError as error:
        raise ApiError(400, error.message, param=where, code="invalid_base64") from None


def require_format(content: bytes, where: str) -> str:
    """The format of an image, by its first bytes.

    Raises ApiError 400 if it is not one of FORMATS, or if its file takes far too long to read.
    """
    image_format = detect_image_format(content[:HEAD_BYTES])
    if image_format is None:
        message, _ = detect_other_format(content[:512]) or ("not an image in a known format", "")
        raise ApiError(400, f"{message}; send JPEG or PNG", param=where, code="invalid_image")
    if image_format not in FORMATS:
        message = f"{image_format.upper()} images are not taken; send JPEG or PNG"
        raise ApiError(400, message, param=where, code="invalid_image")
    if has_too_many_parts(content, image_format):
        message = "the image file has far more parts than an image needs; save it again without its metadata"
        raise ApiError(400, message, param=where, code="invalid_image")
    return image_format


def check_image(path: Path, where: str) -> None:
    """Raise ApiError 400 for a broken header and for a size beyond the limits. No pixel is decoded."""
    try:
        width, height = read_image_size(path, max_pixels=MAX_PIXELS)
    except LorgnetteError as error:
        raise explain_upload(error, where) from None
    if max(width, height) > MAX_ASPECT * min(width, height):
        message = f"image is too narrow: {width}×{height} is beyond {MAX_ASPECT}:1; crop it"
        raise ApiError(400, message, param=where, code="invalid_image")


def explain_upload(error: LorgnetteError, where: str | None = None) -> ApiError:
    """The answer to a request whose image cannot be read. The path of its file stays out of it."""
    is_too_large = isinstance(error, ImageTooLargeError)
    message = f"{error.message}; scale it down" if is_too_large else error.message
    return ApiError(400, message, param=where, code="image_too_large" if is_too_large else "invalid_image")
