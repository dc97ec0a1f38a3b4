import base64
from pathlib import Path

import numpy as np
from PIL import Image

from lorgnette.report.html import inline_images as room
from lorgnette.report.html.inline_images import data_uri, embedded


def test_the_budget_is_by_use(tmp_path: Path, monkeypatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(room, "PICTURE_BYTES", 60_000)
    sizes = []
    for uses in (1, 3):
        shown = embedded([tmp_path / "a.png"] * uses)[tmp_path / "a.png"]
        sizes.append(len(base64.b64decode(shown.source.partition(",")[2])))
    assert sizes[0] <= 60_000
    assert sizes[1] <= 20_000
    [small] = embedded([tmp_path / "a.png"], most=9_000).values()
    assert len(base64.b64decode(small.source.partition(",")[2])) <= 9_000


def test_a_picture_that_is_gone_says_so(tmp_path: Path) -> None:
    [shown] = embedded([tmp_path / "a.png"]).values()
    assert (shown.name, shown.source, shown.problem) == ("a.png", "", "the file is gone")
    assert embedded([]) == {}


def test_bytes_as_an_address() -> None:
    assert data_uri(b"abc", "png") == "data:image/png;base64,YWJj"
