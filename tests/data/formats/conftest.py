"""A row location and two images for the tests of the formats."""

from pathlib import Path

import pytest

from lorgnette.data.row_location import RowLocation
from lorgnette.types import Image


@pytest.fixture
def location() -> RowLocation:
    return RowLocation(Path("/data/a.jsonl"), 5, 2)


@pytest.fixture
def cat() -> Image:
    return Image(Path("/data/cat.jpg"))


@pytest.fixture
def dog() -> Image:
    return Image(Path("/x/dog.jpg"))
