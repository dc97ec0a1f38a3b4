"""A file that would not open as a picture → what it is instead, and what to do about it.

Knows nothing about decoding; it looks at the first bytes only.
"""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lorgnette.errors import LorgnetteError

_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_GET_AGAIN = "get the file again (it was cut off or damaged on its way), or remove its row"
_LFS_POINTER = ("a git-lfs pointer, not the picture itself", "run `git lfs pull` where the file came from")
_WEB_PAGE = ("a web page (HTML or XML), not a picture", "the download got an error page: download the picture again")
_WEB_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")


def explain_decode_error(path: Path, error: Exception) -> LorgnetteError:
    """The error to raise for whatever Pillow or the operating system said about this file."""
    what, remedy = _explain(path, error)
    return LorgnetteError(what, where=str(path), hint=remedy)


def _explain(path: Path, error: Exception) -> tuple[str, str]:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        said = f" ({_format_message(error)})" if str(error) else ""
        return f"picture is too large to be decoded{said}", "scale it down, or remove its row"
    if isinstance(error, OSError) and error.errno is not None:
        return f"picture cannot be read: {error.strerror}", "check the path, its permissions and the disk"
    head = _read_head(path)
    return _detect_other_format(head) or _explain_damage(head, error)


def _explain_damage(head: bytes, error: Exception) -> tuple[str, str]:
    if isinstance(error, UnidentifiedImageError):
        if head.startswith(_MAGIC):
            return "picture is damaged: its header makes no sense", _GET_AGAIN
        return "not a picture in a format that can be read", "save it as JPEG or PNG, or remove its row"
    if isinstance(error, ValueError) and "MAX_TEXT" in str(error):
        return (
            f"picture carries an oversized text chunk: {_format_message(error)}",
            "save it again without its metadata",
        )
    return f"picture cannot be decoded: {_format_message(error)}", _GET_AGAIN


def _format_message(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _detect_other_format(head: bytes) -> tuple[str, str] | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    heic = head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS
    signs = (
        (text.startswith(b"version https://git-lfs"), _LFS_POINTER),
        (b"<svg" in text, ("an SVG drawing, which is not made of pixels", "convert it to PNG")),
        (text.startswith(_WEB_PAGE_STARTS), _WEB_PAGE),
        (heic, ("a HEIC/HEIF picture, which cannot be read here", "convert to JPEG or PNG")),
        (head.startswith(b"%PDF"), ("a PDF document, not a picture", "convert its pages to PNG")),
        (not head.strip(b"\0"), ("the file holds zeros where a picture should start", _GET_AGAIN)),
    )
    return next((described for shown, described in signs if shown), None)
