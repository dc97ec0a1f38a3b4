"""Features kept on disk come back bit for bit; a torn tail, a second process and a full disk cost nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.features import disk_cache as module
from lorgnette.features.disk_cache import FeatureDiskCache, hash_image, hash_tower, open_disk_cache
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
def opened(tmp_path: Path) -> Callable[..., FeatureDiskCache]:
    """opened(name) → a set in this test's store; all are closed afterwards."""
    made: list[FeatureDiskCache] = []

    def build(name: str = "set") -> FeatureDiskCache:
        made.append(FeatureDiskCache(tmp_path / "store", name, WIDTH, torch.bfloat16))
        return made[-1]

    yield build
    for store in made:
        store.close()


def test_what_was_appended_comes_back(opened: Callable[..., FeatureDiskCache]) -> None:
    store = opened()
    store.append({key(i): rows(i) for i in range(5)})
    store.append({key(i): rows(i) for i in range(5, 9)})
    again = opened()
    for i in range(9):
        assert torch.equal(again.get(key(i)), rows(i))
    assert again.get(key(9)) is None
    assert not torch.equal(again.get(key(0)), again.get(key(5)))


def test_a_picture_is_kept_once_whoever_appends(opened: Callable[..., FeatureDiskCache], tmp_path: Path) -> None:
    one, two = opened(), opened()
    one.append({key(1): rows(1)})
    two.append({key(1): rows(1), key(2): rows(2)})
    one.append({key(2): rows(2)})
    assert (tmp_path / "store" / "set" / "rows").stat().st_size == (len(rows(1)) + len(rows(2))) * WIDTH * 2
    assert torch.equal(opened().get(key(2)), rows(2))


@pytest.mark.parametrize("file", ["index", "rows"])
@pytest.mark.parametrize("lost", [1, 7, 60])
def test_a_torn_tail_is_ignored_and_written_over(
    opened: Callable[..., FeatureDiskCache], tmp_path: Path, file: str, lost: int
) -> None:
    store = opened()
    store.append({key(1): rows(1)})
    whole = (tmp_path / "store" / "set" / file).stat().st_size
    store.append({key(i): rows(i) for i in (2, 3, 4, 6, 7)})
    os.truncate(tmp_path / "store" / "set" / file, whole + lost)
    torn = opened()
    assert torch.equal(torn.get(key(1)), rows(1))
    assert torn.get(key(7)) is None
    torn.append({key(8): rows(8), key(9): rows(9)})
    again = opened()
    for i in (1, 8, 9):
        assert torch.equal(again.get(key(i)), rows(i))


def test_an_entry_that_does_not_add_up_is_none(opened: Callable[..., FeatureDiskCache], tmp_path: Path) -> None:
    opened().append({key(1): rows(1), key(2): rows(2)})
    index = tmp_path / "store" / "set" / "index"
    data = bytearray(index.read_bytes())
    data[35] ^= 1
    index.write_bytes(data)
    assert opened().get(key(1)) is None
    assert torch.equal(opened().get(key(2)), rows(2))


WRITER = """
import sys, torch
from pathlib import Path
from lorgnette.features.disk_cache import Store
store = Store(Path(sys.argv[1]), "set", 4, torch.bfloat16)
print("ready", flush=True)
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    torch.manual_seed(i)
    store.append({i.to_bytes(32, "little"): torch.randn(3 + i % 5, 4).bfloat16()})
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(first), str(last)], stdout=subprocess.PIPE)


def test_two_processes_at_once(opened: Callable[..., FeatureDiskCache], tmp_path: Path) -> None:
    both = [writer(tmp_path / "store", 0, 60), writer(tmp_path / "store", 40, 100)]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    store = opened()
    for i in range(100):
        assert torch.equal(store.get(key(i)), rows(i))


def test_killed_while_writing(opened: Callable[..., FeatureDiskCache], tmp_path: Path) -> None:
    process = writer(tmp_path / "store", 0, 10**6)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = opened()
    there = [i for i in range(10**4) if store.get(key(i)) is not None]
    assert there == list(range(len(there))) != []
    assert all(torch.equal(store.get(key(i)), rows(i)) for i in there)


def test_the_oldest_sets_make_room_and_one_in_use_does_not(
    opened: Callable[..., FeatureDiskCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("newer", "older", "open")):
        (store := opened(name)).append({key(i): rows(i) for i in range(20)})
        if name != "open":
            store.close()
        os.utime(tmp_path / "store" / name / "in_use", (1000 - age, 1000 - age))
    size = sum(file.stat().st_size for file in (tmp_path / "store" / "older").iterdir())
    monkeypatch.setattr(module, "MAX_BYTES", 2 * size + size // 2)
    opened("mine").append({key(1): rows(1)})
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"lock", "newer", "open", "mine"}


def test_a_set_does_not_outgrow_the_whole(
    opened: Callable[..., FeatureDiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.append({key(1): rows(1)})
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(LorgnetteError, match=r"feature store is full · .*set · delete"):
        store.append({key(2): rows(2), key(4): rows(4)})
    assert torch.equal(opened().get(key(1)), rows(1))


def test_a_disk_that_is_nearly_full_is_left_alone(
    opened: Callable[..., FeatureDiskCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_FREE_BYTES", 2**62)
    with pytest.raises(LorgnetteError, match="feature store is full"):
        opened().append({key(1): rows(1)})


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorgnetteError, match="feature store cannot be opened"):
        FeatureDiskCache(tmp_path / "file", "set", WIDTH, torch.bfloat16)


def test_the_key_is_of_the_bytes_and_the_size(tmp_path: Path, pictures: list[Path]) -> None:
    (copied := tmp_path / "a.png").write_bytes(pictures[0].read_bytes())
    one = hash_image(ImageGrid(Image(pictures[0]), 1, 4, 6, 2))
    assert one == hash_image(ImageGrid(Image(copied), 1, 4, 6, 2))
    assert one != hash_image(ImageGrid(Image(pictures[0]), 1, 6, 4, 2))
    assert one != hash_image(ImageGrid(Image(pictures[1]), 1, 4, 6, 2))
    assert hash_image(ImageGrid(Image(tmp_path / "none.png"), 1, 4, 6, 2)) is None


def changed(tiny: Path, folder: Path, name: str) -> BaseCheckpoint:
    """The tiny checkpoint with a weight moved by a little."""
    folder.mkdir()
    for path in tiny.iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).symlink_to(path)
    tensors = load_file(tiny / "model.safetensors")
    assert name in tensors
    save_file(tensors | {name: tensors[name] + 0.01}, folder / "model.safetensors")
    return BaseCheckpoint.from_folder(folder)


def test_the_fingerprint_is_of_the_tower_alone(tiny: Path, tmp_path: Path) -> None:
    print_ = hash_tower(BaseCheckpoint.from_folder(tiny))
    assert print_ == hash_tower(changed(tiny, tmp_path / "decoder", "model.norm.weight"))
    assert print_ != hash_tower(changed(tiny, tmp_path / "tower", "visual.blocks.1.mlp.fc1.bias"))


def test_a_set_is_of_one_tower_one_processing_and_one_dtype(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rule = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None))
    smaller = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))  # the size is in a picture's key
    paler = ImageProcessor(
        rule.patch_size,
        rule.merge_size,
        rule.temporal_patch_size,
        (0.5,) * 3,
        rule.image_std,
        None,
        rule.min_pixels,
        rule.max_pixels,
    )
    other = changed(tiny, tmp_path / "tower", "visual.merger.ln_q.weight")
    tiny_ = BaseCheckpoint.from_folder(tiny)
    names = []
    for given in (
        (tiny_, rule, CPU, torch.float32), (tiny_, smaller, CPU, torch.float32), (tiny_, paler, CPU, torch.float32),
        (tiny_, rule, CPU, torch.bfloat16), (other, rule, CPU, torch.float32),
    ):  # fmt: skip
        (store := open_disk_cache(*given)).close()
        names.append(store._folder)
    assert names[0] == names[1]
    assert len(set(names)) == 4
    assert names[0].parent == tmp_path / "cache" / "lorgnette" / "features"
