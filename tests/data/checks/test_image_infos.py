"""What is known of images comes back as it was added, by path and in order."""

from pathlib import Path

import pytest

from lorgnette.data.checks.image_infos import ImageInfo, ImageInfos
from lorgnette.data.image_table import ImageTable
from lorgnette.types import Image

IMAGES = [Image(Path("a/1.jpg")), Image(Path("a/2.jpg")), Image(Path("a/1.jpg"), "x/1.jpg"), Image(Path("b.jpg"))]
INFOS = [
    ImageInfo((1 << 20, 3), None),
    ImageInfo((5, 7), b"sign", 200),
    ImageInfo((9, 9), None),
    ImageInfo((2, 2), None, 0),
]


def test_infos_come_back_by_path_and_in_order() -> None:
    table = ImageTable()
    for image in IMAGES:
        table.add(image)
    table.drop_lookup()
    infos = ImageInfos(table, INFOS)
    expected = {IMAGES[i].path: INFOS[i] for i in (0, 1, 3)}  # of a path the first
    assert list(infos.items()) == list(expected.items())
    assert infos == expected
    assert list(infos.iter_infos()) == list(expected.values())
    assert len(infos) == 3
    infos.add(1, ImageInfo((4, 4), None))  # is known
    assert infos == expected
    assert Path("c.jpg") not in infos
    with pytest.raises(KeyError, match=r"c\.jpg"):
        infos[Path("c.jpg")]
