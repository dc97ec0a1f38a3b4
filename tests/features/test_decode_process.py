"""A process decodes as a thread does: the same pixels, keys and errors. It ends with the one that started it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lorgnette.data import load_resized
from lorgnette.errors import LorgnetteError
from lorgnette.features import decode_pool, decode_process
from lorgnette.features.cache_folder import read_key
from lorgnette.features.decode_pool import DecodePool, ImageContent
from lorgnette.features.decode_process import DecodeProcess, DecodeProcessError
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

PROCESSOR = ImageProcessor(14, 2, 2, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), (56, 84), 3136, 12845056)


@pytest.fixture(scope="module")
def process() -> Iterator[DecodeProcess]:
    process = DecodeProcess(PROCESSOR)
    yield process
    process.close()


def draw(path: Path, width: int = 50, height: int = 40, seed: int = 0) -> ImageGrid:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).resize((width, height)).save(path)
    return ImageGrid(Image(path), 1, 4, 6, 2)


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "ü b.webp", os.fsdecode(b"\xff.png")])
def test_pixels_and_keys_are_those_of_a_thread(process: DecodeProcess, tmp_path: Path, name: str) -> None:
    grid, other = draw(tmp_path / name), draw(tmp_path / "other.png", seed=1)
    key, pixels = process.decode(grid, has_key=True)
    assert key == read_key(grid)
    assert pixels.shape == (56, 84, 3)
    assert np.array_equal(pixels, load_resized(grid.image.path, PROCESSOR.resize))
    key, pixels_of_other = process.decode(other, has_key=False)
    assert key is None
    assert not np.array_equal(pixels_of_other, pixels)


def test_the_grid_says_the_size(process: DecodeProcess, tmp_path: Path) -> None:
    """It is another than the processor's for held-out images of native size."""
    grid = replace(draw(tmp_path / "a.png"), h=2, w=8)
    _, pixels = process.decode(grid, has_key=False)
    native = replace(PROCESSOR, size=(28, 112))
    assert np.array_equal(pixels, load_resized(grid.image.path, native.resize))
    assert np.array_equal(DecodePool(PROCESSOR).decode(grid, has_key=False)[1], pixels)


def test_an_error_is_that_of_a_thread(process: DecodeProcess, tmp_path: Path) -> None:
    grid = draw(tmp_path / "cut.png")
    grid.image.path.write_bytes(grid.image.path.read_bytes()[:100])
    for cut in (grid, ImageGrid(Image(tmp_path / "none.png"), 1, 4, 6, 2)):
        with pytest.raises(LorgnetteError) as expected:
            load_resized(cut.image.path, PROCESSOR.resize)
        with pytest.raises(LorgnetteError) as raised:
            process.decode(cut, has_key=True)
        assert str(raised.value) == str(expected.value)
        assert type(raised.value) is LorgnetteError
    process.decode(draw(tmp_path / "next.png"), has_key=False)


def test_a_large_image_waits_for_memory(
    process: DecodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[tuple[int, int]]()

    class Budget:
        @contextmanager
        def reserve(self, size: tuple[int, int]) -> Iterator[None]:
            sizes.append(size)
            yield

    monkeypatch.setattr(decode_process, "decode_budget", Budget())
    small, large = draw(tmp_path / "small.png"), draw(tmp_path / "large.jpg", 2400, 1800)
    process.decode(small, has_key=False)
    assert sizes == []
    _, pixels = process.decode(large, has_key=False)
    assert sizes == [(2400, 1800)]
    assert np.array_equal(pixels, load_resized(large.image.path, PROCESSOR.resize))


def test_a_killed_process_is_no_fault_of_the_image(tmp_path: Path) -> None:
    grid, process = draw(tmp_path / "a.png"), DecodeProcess(PROCESSOR)
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(DecodeProcessError, match=r"ended with status -9.*a\.png"):
        process.decode(grid, has_key=True)
    process.close()


def test_a_process_that_does_not_start_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/none/python")
    with pytest.raises(DecodeProcessError, match="cannot start a process that decodes images: No such file"):
        DecodeProcess(PROCESSOR)


def test_many_images_are_decoded_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = [draw(tmp_path / f"{i}.png", seed=i) for i in range(4)]
    monkeypatch.setattr(decode_pool, "count_cores", lambda num_ranks: 3)
    monkeypatch.setattr(decode_pool, "_MIN_PROCESSES", 1)
    monkeypatch.setattr(decode_pool, "MIN_IMAGES_FOR_PROCESSES", 4)
    pool = DecodePool(PROCESSOR)

    def load(grid: ImageGrid) -> ImageContent:
        return ImageContent(*pool.decode(grid, has_key=False))

    few = next(pool.start([grids[:3]], load))
    assert pool._processes == []
    many = next(pool.start([grids], load))
    [process] = pool._processes
    assert all(np.array_equal(few[grid].content, many[grid].content) for grid in few)
    pool.close()
    assert process._process.returncode == 0
