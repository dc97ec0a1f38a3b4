"""The image formats this project reads, recognized by a file's first bytes. Decodes nothing."""

HEAD_BYTES = 16
"""As many bytes of a file as `detect_image_format` looks at."""
SUFFIXES = {
    "jpeg": ".jpg", "png": ".png", "gif": ".gif", "webp": ".webp", "bmp": ".bmp", "tiff": ".tif", "avif": ".avif",
    "jp2": ".jp2", "ico": ".ico", "ppm": ".ppm",
}  # fmt: skip
IMAGE_SUFFIXES = frozenset({".jpeg", ".tiff", *SUFFIXES.values()})
_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"), (b"\0\0\0\x0cjP  ", "jp2"), (b"\xff\x4f\xff\x51", "jp2"), (b"\0\0\1\0", "ico"),
    (b"P5", "ppm"), (b"P6", "ppm"),
)  # fmt: skip


def detect_image_format(head: bytes) -> str | None:
    """The format of a file that starts with `head`; None if it is no image known here."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((name for start, name in _SIGNATURES if head.startswith(start)), None)
