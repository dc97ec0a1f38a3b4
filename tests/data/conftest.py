"""Pictures and data files that the tests of the data room share."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real inputs are not here: {SHARED}")
    return SHARED


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Make a small picture; another colour makes another picture."""

    def make(name: str, colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (32, 24)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colour).save(path)
        return path

    return make


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of (image_path, caption) as a CSV."""

    def make(rows: list[tuple[str, str]], name: str = "captions.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image_path", "caption"), *rows])
        return path

    return make
