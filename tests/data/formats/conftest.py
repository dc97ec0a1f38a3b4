"""What the tests of the forms share: a place, two pictures, and how to say what an example says."""

from pathlib import Path

import pytest

from lorgnette.data.rows import Place
from lorgnette.types import Picture


@pytest.fixture
def place() -> Place:
    return Place(Path("/data/a.jsonl"), 5, 2)


@pytest.fixture
def cat() -> Picture:
    return Picture(Path("/data/cat.jpg"))


@pytest.fixture
def dog() -> Picture:
    return Picture(Path("/x/dog.jpg"))
