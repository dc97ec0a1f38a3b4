import base64
from pathlib import Path

import numpy as np
from PIL import Image

from lorgnette.report.html import inline_images as room
from lorgnette.report.html.inline_images import encode_data_uri, inline_images


def test_the_budget_is_by_use(tmp_path: Path, monkeypatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(room, "PAGE_IMAGE_BYTES", 60_000)
    sizes = []
    for uses in (1, 3):
        shown = inline_images([tmp_path / "a.png"] * uses)[tmp_path / "a.png"]
        sizes.append(len(base64.b64decode(shown.source.partition(",")[2])))
    assert sizes[0] <= 60_000
    assert sizes[1] <= 20_000
    [small] = inline_images([tmp_path / "a.png"], max_bytes=9_000).values()
    assert len(base64.b64decode(small.source.partition(",")[2])) <= 9_000


def test_a_picture_that_is_gone_says_so(tmp_path: Path) -> None:
    [shown] = inline_images([tmp_path / "a.png"]).values()
    assert (shown.name, shown.source, shown.problem) == ("a.png", "", "the file is gone")
    assert inline_images([]) == {}


def test_bytes_as_an_address() -> None:
    assert encode_data_uri(b"abc", "png") == "data:image/png;base64,YWJj"
