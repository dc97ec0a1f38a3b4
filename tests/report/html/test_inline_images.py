import base64
from pathlib import Path

import numpy as np
from PIL import Image

from lorgnette.report.html import inline_images as inline_images_module
from lorgnette.report.html.inline_images import encode_data_uri, inline_images


def test_the_size_limit_counts_every_use(tmp_path: Path, monkeypatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(inline_images_module, "PAGE_IMAGE_BYTES", 60_000)
    sizes = []
    for num_uses in (1, 3):
        image = inline_images([tmp_path / "a.png"] * num_uses)[tmp_path / "a.png"]
        sizes.append(len(base64.b64decode(image.source.partition(",")[2])))
    assert sizes[0] <= 60_000
    assert sizes[1] <= 20_000
    [small] = inline_images([tmp_path / "a.png"], max_bytes=9_000).values()
    assert len(base64.b64decode(small.source.partition(",")[2])) <= 9_000


def test_a_missing_image_has_a_reason(tmp_path: Path) -> None:
    [image] = inline_images([tmp_path / "a.png"]).values()
    assert (image.name, image.source, image.problem) == ("a.png", "", "file not found")
    assert inline_images([]) == {}


def test_bytes_become_a_data_uri() -> None:
    assert encode_data_uri(b"abc", "png") == "data:image/png;base64,YWJj"
