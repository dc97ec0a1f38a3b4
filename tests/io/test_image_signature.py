import io

import PIL.Image
import pytest

from lorgnette.data import IMAGE_SUFFIXES as LOADED_SUFFIXES
from lorgnette.io.image_signature import HEAD_BYTES, IMAGE_SUFFIXES, SUFFIXES, detect_image_format, has_all_boxes


@pytest.mark.parametrize(
    ("format", "name"),
    [("JPEG", "jpeg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tiff"),
     ("AVIF", "avif"), ("JPEG2000", "jp2"), ("ICO", "ico"), ("PPM", "ppm")],
)  # fmt: skip
def test_each_format_is_detected(format: str, name: str) -> None:
    out = io.BytesIO()
    PIL.Image.effect_noise((40, 40), 50).convert("RGB").save(out, format)
    assert detect_image_format(out.getvalue()[:HEAD_BYTES]) == name
    assert SUFFIXES[name] in IMAGE_SUFFIXES


def test_other_files_are_no_images() -> None:
    for head in (b"", b"<html>", b"PAR1", b"PK\x03\x04", b"\0\0\0\x20ftypmp42", b"RIFF....WAVE"):
        assert detect_image_format(head) is None


def test_heic_is_detected_by_its_brand() -> None:
    for brand in (b"heic", b"mif1", b"hevx"):
        assert detect_image_format(b"\0\0\0\x20ftyp" + brand) == "heic"


def test_the_boxes_of_an_avif_end_with_the_file() -> None:
    out = io.BytesIO()
    PIL.Image.effect_noise((40, 40), 50).convert("RGB").save(out, "AVIF")
    content = out.getvalue()
    assert has_all_boxes(io.BytesIO(content))
    for damaged in (content[:-1], content + b"x", content[:-100] + bytes(100), content[:4], bytes(64)):
        assert not has_all_boxes(io.BytesIO(damaged))


def test_its_suffixes_can_be_loaded() -> None:
    assert IMAGE_SUFFIXES <= LOADED_SUFFIXES
