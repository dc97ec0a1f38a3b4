"""Image and data files for the tests of data."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from stand_in_hub import hub, jpeg, tarred, trick, zipped

__all__ = ["hub", "jpeg", "tarred", "trick", "zipped"]
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no real inputs in {SHARED}")
    return SHARED


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    """Save a small image; another color makes another image."""

    def make(name: str, color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (32, 24)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(path)
        return path

    return make


@pytest.fixture
def make_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of (image_path, caption) as a CSV."""

    def make(rows: list[tuple[str, str]], name: str = "captions.csv") -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image_path", "caption"), *rows])
        return path

    return make
