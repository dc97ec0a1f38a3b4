"""Counts the parts of an image file, before it is opened: a small file must not keep a thread busy for hours.

Pillow reads segments, chunks and blocks one by one in Python, and libjpeg walks over all pixels of a progressive JPEG
for each scan, also for one of 75 bytes. Files of cameras and programs have a few dozen parts.
"""

import re

_MAX_PARTS = {"jpeg": 1_000, "png": 20_000, "gif": 20_000, "bmp": 20_000}
_MAX_SCANS = 64
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
"""In a scan 0xFF is data before a zero, and a restart marker before 0xD0 to 0xD7. Of a run of 0xFF only the last one
is matched: a repetition would begin anew at each of them."""
_EOI, _SOS = 0xD9, 0xDA
_JPEG_ALONE = (0x01, 0xD8)
"""Markers without a segment."""
_BMP_RUN_LENGTHS = (1, 2)


def has_too_many_parts(content: bytes, image_format: str) -> bool:
    """Whether reading the file takes far longer than its size and its pixels let expect."""
    most = _MAX_PARTS.get(image_format, 0)
    match image_format:
        case "jpeg":
            return _has_too_many_segments(content, most)
        case "png":
            return _has_too_many_chunks(content, most)
        case "gif":
            return _has_too_many_blocks(content, most)
        case "bmp":  # Pillow decodes run lengths in Python, two bytes each
            return int.from_bytes(content[30:34], "little") in _BMP_RUN_LENGTHS and len(content) > 2 * most
    return False


def _has_too_many_segments(content: bytes, most: int) -> bool:
    """Of a JPEG up to its end (ITU T.81, B.1). Bytes between segments count before the first scan, not in one."""
    position, num_junk, num_scans = 2, 0, 0
    for _ in range(most):
        marker = _JPEG_MARKER.search(content, position)
        if num_scans == 0:
            num_junk += (marker.start(1) if marker else len(content)) - 1 - position
        if num_junk > most or num_scans > _MAX_SCANS:
            return True
        if marker is None or (kind := marker[1][0]) == _EOI:
            return False
        position = marker.end()
        num_scans += kind == _SOS
        if num_scans == 1 and content.count(b"\xff\xda", position) < _MAX_SCANS:
            return False  # hardly any file comes further: a search for all markers takes long
        if kind not in _JPEG_ALONE:
            position += max(2, int.from_bytes(content[position : position + 2], "big"))
    return True


def _has_too_many_chunks(content: bytes, most: int) -> bool:
    """Of a PNG: length, name, data, checksum."""
    position = 8
    for _ in range(most):
        if position >= len(content) or content[position + 4 : position + 8] == b"IEND":
            return False
        position += 12 + int.from_bytes(content[position : position + 4], "big")
    return True


def _has_too_many_blocks(content: bytes, most: int) -> bool:
    """Of a GIF up to its first image (GIF89a, 15–26): extensions of blocks that begin with their length."""
    flags = content[10] if len(content) > 10 else 0
    position = 13 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    is_inside = False
    for _ in range(most):
        byte = content[position : position + 1]
        if not byte or (not is_inside and byte in b",;"):
            return False
        if is_inside:
            is_inside = byte != b"\0"
            position += 1 + byte[0]
        else:
            is_inside = byte == b"!"
            position += 2 if is_inside else 1
    return True
