"""Features on disk read back bit for bit, after a killed process, with a second one, and on a full disk."""

import json
import os
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.features import disk_cache
from lorgnette.features.cache_folder import read_key
from lorgnette.features.disk_cache import (
    FeatureDiskCache,
    find_damage,
    hash_tower,
    open_disk_cache,
    read_all_into,
)
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

WIDTH = 4
CPU = torch.device("cpu")


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def rows(number: int) -> torch.Tensor:
    torch.manual_seed(number)
    return torch.randn(3 + number % 5, WIDTH).bfloat16()


@pytest.fixture
def open_cache(tmp_path: Path) -> Callable[..., FeatureDiskCache]:
    """open_cache(name, dtype) → a set in this test's folder; all are closed afterwards."""
    caches: list[FeatureDiskCache] = []

    def build(name: str = "set", dtype: torch.dtype = torch.bfloat16) -> FeatureDiskCache:
        caches.append(FeatureDiskCache(tmp_path / "features", name, WIDTH, dtype))
        return caches[-1]

    yield build
    for cache in caches:
        cache.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_appended_features_read_back(open_cache: Callable[..., FeatureDiskCache], dtype: torch.dtype) -> None:
    cache = open_cache("set", dtype)
    cache.append({key(i): rows(i).to(dtype) for i in range(5)})
    cache.append({key(i): rows(i).to(dtype) for i in range(5, 9)})
    reopened = open_cache("set", dtype)
    for i in range(9):
        assert torch.equal(reopened.get(key(i)), rows(i).to(dtype))
    assert reopened.get(key(9)) is None
    assert not torch.equal(reopened.get(key(0)), reopened.get(key(5)))


def test_features_are_read_again_from_their_place(open_cache: Callable[..., FeatureDiskCache], tmp_path: Path) -> None:
    """Also from a deleted file; a shorter one is an error."""
    cache = open_cache()
    assert cache.locate(key(2)) is None
    cache.append({key(i): rows(i) for i in (1, 2, 4)}, is_synced=False)
    cache.refresh()
    place, last = cache.locate(key(2)), cache.locate(key(4))
    out = torch.empty(place.num_rows, place.width, dtype=torch.bfloat16)
    os.truncate(tmp_path / "features" / "set" / "rows", last.offset + 1)
    with pytest.raises(LorgnetteError, match="cannot be read again: the file has become shorter"):
        last.read_into(torch.empty_like(rows(4)).view(torch.uint8).numpy().reshape(-1))
    shutil.rmtree(tmp_path / "features" / "set")
    place.read_into(out.view(torch.uint8).numpy().reshape(-1))
    assert torch.equal(out, rows(2))


def test_an_image_is_stored_once_whichever_cache_appends_it(
    open_cache: Callable[..., FeatureDiskCache], tmp_path: Path
) -> None:
    first, second = open_cache(), open_cache()
    first.append({key(1): rows(1)})
    second.append({key(1): rows(1), key(2): rows(2)})
    first.append({key(2): rows(2)})
    assert (tmp_path / "features" / "set" / "rows").stat().st_size == (len(rows(1)) + len(rows(2))) * WIDTH * 2
    assert torch.equal(open_cache().get(key(2)), rows(2))


@pytest.mark.parametrize("file", ["index", "rows"])
@pytest.mark.parametrize("extra_bytes", [1, 7, 60])
def test_a_partial_write_is_ignored_and_overwritten(
    open_cache: Callable[..., FeatureDiskCache], tmp_path: Path, file: str, extra_bytes: int
) -> None:
    cache = open_cache()
    cache.append({key(1): rows(1)})
    size = (tmp_path / "features" / "set" / file).stat().st_size
    cache.append({key(i): rows(i) for i in (2, 3, 4, 6, 7)})
    os.truncate(tmp_path / "features" / "set" / file, size + extra_bytes)
    truncated = open_cache()
    assert torch.equal(truncated.get(key(1)), rows(1))
    assert truncated.get(key(7)) is None
    assert truncated.get(key(2)) is None or file == "rows", "entries of one call come together"
    truncated.append({key(8): rows(8), key(9): rows(9)})
    reopened = open_cache()
    for i in (1, 8, 9):
        assert torch.equal(reopened.get(key(i)), rows(i))


def test_an_entry_with_a_wrong_checksum_is_ignored(open_cache: Callable[..., FeatureDiskCache], tmp_path: Path) -> None:
    open_cache().append({key(1): rows(1), key(2): rows(2)})
    index = tmp_path / "features" / "set" / "index"
    data = bytearray(index.read_bytes())
    data[35] ^= 1
    index.write_bytes(data)
    assert open_cache().get(key(1)) is None
    assert torch.equal(open_cache().get(key(2)), rows(2))


@pytest.mark.parametrize("damage", ["zeros", "bit"])
def test_damaged_rows_are_not_returned_and_stored_again(
    open_cache: Callable[..., FeatureDiskCache], tmp_path: Path, damage: str
) -> None:
    open_cache().append({key(i): rows(i) for i in (1, 2, 3)})
    path = tmp_path / "features" / "set" / "rows"
    content = bytearray(path.read_bytes())
    start, end = len(rows(1)) * WIDTH * 2, (len(rows(1)) + len(rows(2))) * WIDTH * 2
    if damage == "zeros":
        content[start:end] = bytes(end - start)
    else:
        content[end - 1] ^= 1
    path.write_bytes(content)
    cache = open_cache()
    assert cache.get(key(2)) is None
    assert cache.get(key(2)) is None
    assert cache.num_damaged == 1
    for i in (1, 3):
        assert torch.equal(cache.get(key(i)), rows(i))
    cache.append({key(2): rows(2)})
    reopened = open_cache()
    for i in (1, 2, 3):
        assert torch.equal(reopened.get(key(i)), rows(i))
    assert reopened.num_damaged == 0


@pytest.mark.parametrize("num_left", [0, 4, None])
def test_rows_that_were_cut_off_are_stored_again(
    open_cache: Callable[..., FeatureDiskCache], tmp_path: Path, num_left: int | None
) -> None:
    """num_left: whole rows that are left; None: the file is deleted."""
    open_cache().append({key(i): rows(i) for i in range(4)})
    path = tmp_path / "features" / "set" / "rows"
    if num_left is None:
        path.unlink()
    else:
        os.truncate(path, num_left * WIDTH * 2 + 1)
    cache = open_cache()
    num_kept = 1 if num_left else 0
    assert [cache.get(key(i)) is not None for i in range(4)] == [i < num_kept for i in range(4)]
    cache.append({key(i): rows(i) for i in range(4)})
    reopened = open_cache()
    assert all(torch.equal(reopened.get(key(i)), rows(i)) for i in range(4))


def test_rows_over_the_place_of_lost_ones_are_not_taken_for_them(
    open_cache: Callable[..., FeatureDiskCache], tmp_path: Path
) -> None:
    """The index still names the rows that were cut off, and others are written in their place."""
    open_cache().append({key(1): rows(1), key(6): rows(6)})
    os.truncate(tmp_path / "features" / "set" / "rows", len(rows(1)) * WIDTH * 2)
    open_cache().append({key(11): rows(11)})
    assert len(rows(11)) == len(rows(6))
    reopened = open_cache()
    assert reopened.get(key(6)) is None
    assert torch.equal(reopened.get(key(11)), rows(11))


WRITER = """
import sys, torch
from pathlib import Path
from lorgnette.features.disk_cache import FeatureDiskCache
cache = FeatureDiskCache(Path(sys.argv[1]), "set", 4, torch.bfloat16)
print("ready", flush=True)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    torch.manual_seed(i)
    cache.append({i.to_bytes(32, "little"): torch.randn(3 + i % 5, 4).bfloat16()})
"""


StartWriter = Callable[[int, int], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_writer(tmp_path: Path, fork_command: Callable[..., list[str]]) -> StartWriter:
    """start_writer(first, last) → the process that appends these images."""
    program = tmp_path / "writer.py"
    program.write_text(WRITER)

    def start(first: int, last: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(fork_command(program, tmp_path / "features", first, last), stdout=subprocess.PIPE)

    return start


def test_two_processes_append_at_once(open_cache: Callable[..., FeatureDiskCache], start_writer: StartWriter) -> None:
    processes = [start_writer(0, 60), start_writer(40, 100)]
    assert [process.communicate() and process.returncode for process in processes] == [0, 0]
    cache = open_cache()
    for i in range(100):
        assert torch.equal(cache.get(key(i)), rows(i))


def test_a_process_killed_while_writing_loses_only_its_last_image(
    open_cache: Callable[..., FeatureDiskCache], start_writer: StartWriter
) -> None:
    process = start_writer(0, 10**6)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache = open_cache()
    stored = [i for i in range(10**4) if cache.get(key(i)) is not None]
    assert stored == list(range(len(stored))) != []
    assert all(torch.equal(cache.get(key(i)), rows(i)) for i in stored)


def test_the_oldest_sets_are_deleted_except_one_in_use(
    open_cache: Callable[..., FeatureDiskCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("newer", "older", "open")):
        (cache := open_cache(name)).append({key(i): rows(i) for i in range(20)})
        if name != "open":
            cache.close()
        os.utime(tmp_path / "features" / name / "in_use", (1000 - age, 1000 - age))
    size = sum(file.stat().st_size for file in (tmp_path / "features" / "older").iterdir())
    monkeypatch.setattr(disk_cache, "MAX_BYTES", 2 * size + size // 2)
    open_cache("mine").append({key(1): rows(1)})
    assert {path.name for path in (tmp_path / "features").iterdir()} == {"lock", "newer", "open", "mine"}


def test_a_set_does_not_exceed_the_limit(
    open_cache: Callable[..., FeatureDiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache()
    cache.append({key(1): rows(1)})
    monkeypatch.setattr(disk_cache, "MAX_BYTES", 100)
    with pytest.raises(LorgnetteError, match=r"image features is full · .*set · delete"):
        cache.append({key(2): rows(2), key(4): rows(4)})
    assert torch.equal(open_cache().get(key(1)), rows(1))


def test_a_nearly_full_disk_is_not_written(
    open_cache: Callable[..., FeatureDiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(LorgnetteError, match="image features is full"):
        open_cache().append({key(1): rows(1)})


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorgnetteError, match="image features cannot be opened"):
        FeatureDiskCache(tmp_path / "file", "set", WIDTH, torch.bfloat16)


def test_the_key_depends_on_file_content_and_grid(tmp_path: Path, image_files: list[Path]) -> None:
    (copy := tmp_path / "a.png").write_bytes(image_files[0].read_bytes())
    image_key = read_key(ImageGrid(Image(image_files[0]), 1, 4, 6, 2))
    assert image_key == read_key(ImageGrid(Image(copy), 1, 4, 6, 2))
    assert image_key != read_key(ImageGrid(Image(image_files[0]), 1, 6, 4, 2))
    assert image_key != read_key(ImageGrid(Image(image_files[1]), 1, 4, 6, 2))
    assert all(read_key(ImageGrid(Image(path), 1, 4, 6, 2)) is None for path in (tmp_path / "none.png", tmp_path))


def change_weight(tiny: Path, folder: Path, name: str) -> BaseCheckpoint:
    """The tiny checkpoint with one weight changed slightly."""
    folder.mkdir()
    for path in tiny.iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).symlink_to(path)
    tensors = load_file(tiny / "model.safetensors")
    assert name in tensors
    save_file(tensors | {name: tensors[name] + 0.01}, folder / "model.safetensors")
    return BaseCheckpoint.from_folder(folder)


def test_the_hash_depends_on_the_tower_alone(tiny: Path, tmp_path: Path) -> None:
    tower_hash = hash_tower(BaseCheckpoint.from_folder(tiny))
    assert tower_hash == hash_tower(change_weight(tiny, tmp_path / "decoder", "model.norm.weight"))
    assert tower_hash != hash_tower(change_weight(tiny, tmp_path / "tower", "visual.blocks.1.mlp.fc1.bias"))


def test_a_set_belongs_to_one_tower_processing_and_dtype(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    processor = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None))
    resized = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))  # the size is in an image's key
    other_mean = replace(processor, image_mean=(0.5,) * 3)
    checkpoint = BaseCheckpoint.from_folder(tiny)
    other_tower = change_weight(tiny, tmp_path / "tower", "visual.merger.ln_q.weight")
    names = []
    for arguments in (
        (checkpoint, processor, CPU, torch.float32), (checkpoint, resized, CPU, torch.float32),
        (checkpoint, other_mean, CPU, torch.float32), (checkpoint, processor, CPU, torch.bfloat16),
        (checkpoint, processor, CPU, torch.float16), (other_tower, processor, CPU, torch.float32),
    ):  # fmt: skip
        (cache := open_disk_cache(*arguments)).close()
        names.append(cache._folder)
    assert names[0] == names[1]
    assert len(set(names)) == 5
    assert names[0].parent == tmp_path / "cache" / "lorgnette" / "features"


CONFIGS: dict[str, list[dict[str, object]]] = {
    "qwen2_vl": [{}, {"num_heads": 4}],
    "qwen2_5_vl": [{}, {"fullatt_block_indexes": [2]}, {"window_size": 56}],
    "qwen3_vl": [{}, {"deepstack_visual_indexes": [1, 2]}],
}
"""Changes of config.json's `vision_config` that leave all weights as they are, and change features."""


def test_a_set_belongs_to_one_family_and_its_sizes(
    tiny_family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders, widths = list[Path](), list[int]()
    for model_type, changes in CONFIGS.items():
        for number, change in enumerate(changes):
            folder = shutil.copytree(tiny_family(model_type), tmp_path / f"{model_type}-{number}")
            hf_config = json.loads((folder / "config.json").read_text())
            hf_config["vision_config"] |= change
            (folder / "config.json").write_text(json.dumps(hf_config))
            processor = ImageProcessor.from_folder(folder, ProcessorSettings(image_size=None))
            for _ in range(2):
                (cache := open_disk_cache(BaseCheckpoint.from_folder(folder), processor, CPU, torch.float32)).close()
                folders.append(cache._folder)
            widths.append(cache._width)
    assert folders[::2] == folders[1::2]
    assert len(set(folders)) == sum(map(len, CONFIGS.values()))
    assert widths == [64] * 5 + [3 * 64] * 2


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 5, 4, 7, 8, 8], [10, 0, 5, 10, 10, 5, 0, 5]], ids=["many sizes", "one size"]
)
def test_features_read_together_are_checked_one_by_one_where_they_are_damaged(
    open_cache: Callable[..., FeatureDiskCache], monkeypatch: pytest.MonkeyPatch, order: list[int]
) -> None:
    cache, lengths = open_cache(), list[int]()
    cache.append({key(i): rows(i) for i in range(11)})
    cache.refresh()
    places = [place for i in order if (place := cache.locate(key(i)))]
    content = np.zeros(sum(place.num_bytes for place in places), np.uint8)
    read_all_into(places, content)
    assert torch.equal(torch.from_numpy(content).view(torch.bfloat16).view(-1, WIDTH), torch.cat([*map(rows, order)]))
    crc32 = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda data: lengths.append(len(data)) or crc32(data))
    assert find_damage(places, content) == []
    assert lengths == ([content.size] if order[0] == 10 else [place.num_bytes for place in places])
    starts = np.cumsum([0, *(place.num_bytes for place in places)])
    for number, byte in ((0, starts[0]), (2, starts[3] - 1), (7, starts[7])):
        damaged = content.copy()
        damaged[byte] ^= 1
        assert find_damage(places, damaged) == [number]
    cache.forget(key(1))
    cache.forget(key(1))
    assert cache.num_damaged == 1
    assert cache.locate(key(1)) is None
