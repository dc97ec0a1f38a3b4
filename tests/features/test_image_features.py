"""A frozen tower encodes each image once; an undecodable image is returned with its error."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lorgnette.config import ProcessorSettings
from lorgnette.data import read_image_size
from lorgnette.distributed import World
from lorgnette.engine.loading import build_features
from lorgnette.errors import LorgnetteError
from lorgnette.features import decode_pool, disk_cache, image_features
from lorgnette.features.cache_folder import count_images, read_key
from lorgnette.features.disk_cache import FeatureDiskCache, open_disk_cache, open_exchange
from lorgnette.features.image_features import Features, FeatureStorage, HfVisionTower, LazyTower
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid
from tests.ranks import run_ranks

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
CPU = torch.device("cpu")
WIDTH = 2


class RecordingTower(HfVisionTower):
    """A tower that records its calls: the features of an image are the first value of its first patch."""

    def __init__(self, device: str = "cpu") -> None:
        self.calls: list[list[ImageGrid]] = []
        self.device, self.dtype = torch.device(device), torch.float32

    def __call__(self, grids: Sequence[ImageGrid], patches: Tensor) -> Tensor:
        self.calls.append(list(grids))
        firsts = [part[0, 0] for part in patches.split([g.h * g.w for g in grids])]
        return torch.cat([first.expand(g.num_tokens, WIDTH) for g, first in zip(grids, firsts, strict=True)])


@pytest.fixture
def image_processor(tiny: Path) -> ImageProcessor:
    return ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


def make_grids(image_processor: ImageProcessor, image_files: list[Path]) -> list[ImageGrid]:
    grids, side = [], image_processor.patch_size
    for path in image_files:
        height, width = image_processor.compute_size(*read_image_size(path))
        grids.append(ImageGrid(Image(path), 1, height // side, width // side, 2))
    return grids


@pytest.fixture
def grids(image_processor: ImageProcessor, image_files: list[Path]) -> list[ImageGrid]:
    return make_grids(image_processor, image_files)


def test_a_frozen_tower_encodes_each_image_once(image_processor: ImageProcessor, grids: list[ImageGrid]) -> None:
    tower, progress = RecordingTower(), []
    features = Features(tower, image_processor, is_live=False)
    assert features.prepare([grids[0], grids[1], grids[0]], on_progress=progress.append) == {}
    assert features.prepare(grids, on_progress=progress.append) == {}
    assert sorted((grid for call in tower.calls for grid in call), key=grids.index) == grids
    assert sum(progress) == len(grids)
    num_calls = len(tower.calls)
    features.prepare(grids)
    features.gather(grids)
    assert len(tower.calls) == num_calls


def test_features_are_gathered_in_order(image_processor: ImageProcessor, grids: list[ImageGrid]) -> None:
    features = Features(RecordingTower(), image_processor, is_live=False)
    features.prepare(grids)
    parts = [features.gather([grid]) for grid in grids]
    assert [len(part) for part in parts] == [grid.num_tokens for grid in grids]
    order = [3, 0, 5, 0]
    assert torch.equal(features.gather([grids[i] for i in order]), torch.cat([parts[i] for i in order]))


def test_a_live_tower_encodes_in_every_micro_batch(image_processor: ImageProcessor, grids: list[ImageGrid]) -> None:
    tower = RecordingTower()
    features = Features(tower, image_processor, is_live=True)
    features.prepare(grids)
    assert tower.calls == []
    first, second = features.gather(grids[:2]), features.gather(grids[:2])
    assert tower.calls == [grids[:2]] * 2
    assert torch.equal(first, second)


@pytest.mark.parametrize("is_live", [False, True])
def test_an_undecodable_image_is_returned_with_its_error(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, is_live: bool
) -> None:
    (tmp_path / "cut.png").write_bytes(grids[0].image.path.read_bytes()[:200])
    broken = [ImageGrid(Image(tmp_path / name), 1, 4, 4, 2) for name in ("cut.png", "none.png")]
    progress: list[int] = []
    features = Features(RecordingTower(), image_processor, is_live=is_live)
    errors = features.prepare([broken[0], grids[0], broken[1]], on_progress=progress.append)
    assert list(errors) == broken
    assert all(error.message and error.hint for error in errors.values())
    assert sum(progress) == 3
    assert len(features.gather(grids[:1])) == grids[0].num_tokens


def test_the_tower_is_not_called_without_images(image_processor: ImageProcessor, tmp_path: Path) -> None:
    tower = RecordingTower()
    errors = Features(tower, image_processor, is_live=False).prepare(
        [ImageGrid(Image(tmp_path / "none.png"), 1, 4, 4, 2)]
    )
    assert len(errors) == 1
    assert tower.calls == []


def test_groups_change_no_feature(
    image_processor: ImageProcessor,
    grids: list[ImageGrid],
    load_tiny_model: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = load_tiny_model()
    ungrouped, grouped = (Features(HfVisionTower(base), image_processor, is_live=False) for _ in range(2))
    ungrouped.prepare(grids)
    monkeypatch.setattr(decode_pool, "MAX_PATCHES_PER_CALL", 20)
    sizes: list[int] = []
    grouped.prepare(grids, on_progress=sizes.append)
    assert len(sizes) > 3
    torch.testing.assert_close(grouped.gather(grids), ungrouped.gather(grids), atol=1e-5, rtol=0)


def open_cache(folder: Path) -> FeatureDiskCache:
    return FeatureDiskCache(folder, "set", WIDTH, torch.float32)


def test_a_second_run_reads_the_features_and_loads_no_tower(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    first = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    first.prepare(grids)
    expected = first.gather(grids)
    assert first.close() is None

    def fail() -> HfVisionTower:
        raise AssertionError

    second = Features(
        LazyTower(CPU, torch.float32, fail), image_processor, is_live=False, disk_cache=open_cache(tmp_path)
    )
    assert second.prepare(grids) == {}
    assert second.num_cached == len(grids)
    assert torch.equal(second.gather(grids), expected)
    second.close()


def test_the_disk_cache_is_keyed_by_file_content_and_size(
    image_processor: ImageProcessor, grids: list[ImageGrid], tiny: Path, tmp_path: Path
) -> None:
    first = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    first.prepare(grids[:1])
    first.close()
    (copy := tmp_path / "copy.png").write_bytes(grids[0].image.path.read_bytes())
    smaller = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=(56, 56)))
    for processor, grid, num_cached in (
        (image_processor, ImageGrid(Image(copy), 1, grids[0].h, grids[0].w, 2), 1),
        (smaller, ImageGrid(Image(copy), 1, 4, 4, 2), 0),
        (image_processor, grids[1], 0),
    ):
        features = Features(tower := RecordingTower(), processor, is_live=False, disk_cache=open_cache(tmp_path))
        features.prepare([grid])
        assert (features.num_cached, len(tower.calls)) == (num_cached, 1 - num_cached)
        features.close()


@pytest.mark.parametrize("has_others", [False, True])
def test_features_of_a_file_that_changes_while_it_is_read_are_not_stored(
    image_processor: ImageProcessor,
    grids: list[ImageGrid],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_others: bool,
) -> None:
    """Otherwise the old file would have those of the new one in every later run. has_others: the set is not empty."""
    path = tmp_path / "changes.png"
    old, new = (grid.image.path.read_bytes() for grid in grids[:2])
    path.write_bytes(old)
    changing = replace(grids[0], image=Image(path))
    if has_others:
        first = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path / "cache"))
        first.prepare(grids[2:])
        first.close()
    load = decode_pool.load_resized

    def load_changed(*arguments: Any) -> Any:
        path.write_bytes(new)
        return load(*arguments)

    results = []
    for change in (True, False, False):
        monkeypatch.setattr(decode_pool, "load_resized", load_changed if change else load)
        path.write_bytes(old)
        cache = open_cache(tmp_path / "cache")
        features = Features(tower := RecordingTower(), image_processor, is_live=False, disk_cache=cache)
        features.prepare([changing])
        results.append((features.gather([changing]), len(tower.calls)))
        features.close()
    assert [num_calls for _, num_calls in results] == [1, 1, 0]
    assert not torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[1][0], results[2][0])


def test_a_lazy_tower_is_loaded_once_and_only_if_needed(
    image_processor: ImageProcessor, grids: list[ImageGrid]
) -> None:
    towers: list[RecordingTower] = []

    def load() -> RecordingTower:
        towers.append(RecordingTower())
        return towers[-1]

    features = Features(LazyTower(CPU, torch.float32, load), image_processor, is_live=False)
    assert towers == []
    features.prepare(grids[:2])
    features.prepare(grids[2:])
    assert len(towers) == 1


def test_a_loading_tower_is_waited_for_and_loaded_once(image_processor: ImageProcessor, grids: list[ImageGrid]) -> None:
    towers: list[RecordingTower] = []
    order: list[str] = []

    def load() -> RecordingTower:
        order.append("loaded")
        towers.append(RecordingTower())
        return towers[-1]

    lazy_tower = LazyTower(CPU, torch.float32, load)
    features = Features(lazy_tower, image_processor, is_live=False)
    assert features.lazy_tower is lazy_tower
    with ThreadPoolExecutor(1) as pool:
        lazy_tower.start_loading(pool, [pool.submit(order.append, "warm")])
        _ = lazy_tower.tower
        assert order == ["warm", "loaded"]
        features.prepare(grids)
        assert len(towers) == 1
    features.release_tower()
    features.prepare([replace(grids[0], t=2)])
    assert len(towers) == 2  # released, it is loaded again when needed


def test_an_error_while_loading_or_warming_up_is_raised() -> None:
    def broken() -> RecordingTower:
        raise LorgnetteError("weights cannot be loaded")

    with ThreadPoolExecutor(1) as pool:
        for load, warm_up in ((broken, list), (RecordingTower, broken)):
            lazy_tower = LazyTower(CPU, torch.float32, load)
            lazy_tower.start_loading(pool, [pool.submit(warm_up)])
            with pytest.raises(LorgnetteError, match="cannot be loaded"):
                _ = lazy_tower.tower


def test_a_lazy_tower_is_needed_if_the_disk_cache_is_empty(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    lazy_tower = LazyTower(CPU, torch.float32, RecordingTower)
    first = Features(lazy_tower, image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    assert first.lazy_tower is lazy_tower
    first.prepare(grids[:1])
    first.close()
    second = Features(lazy_tower, image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    assert second.lazy_tower is None
    second.close()
    assert Features(RecordingTower(), image_processor, is_live=False).lazy_tower is None  # it is loaded already


def test_a_live_tower_writes_nothing_to_disk(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    features = Features(
        RecordingTower(), image_processor, is_live=True, disk_cache=(disk_cache := open_cache(tmp_path))
    )
    features.prepare(grids)
    features.gather(grids)
    features.close()
    disk_cache.close()
    assert not (tmp_path / "set" / "rows").exists()


def test_a_full_disk_cache_is_reported_and_changes_no_feature(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.features.disk_cache.MAX_BYTES", 16)
    features = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    features.prepare(grids)
    assert len(features.gather(grids)) == sum(grid.num_tokens for grid in grids)
    error = features.close()
    assert error is not None
    assert error.message == "disk cache of image features is full"


def prepare_on_rank(
    world: World, image_processor: ImageProcessor, grids: list[ImageGrid], folder: Path | None, max_bytes: int = 2**30
) -> dict[str, Any]:
    """What a rank makes, fails at and has in the end, in numbers."""
    disk_cache.MAX_BYTES = max_bytes
    cache = open_cache(folder) if folder else None
    features = Features(tower := RecordingTower(), image_processor, is_live=False, disk_cache=cache)
    progress: list[int] = []
    features.start_decoding(grids, world)
    errors = features.prepare(grids, on_progress=progress.append, world=world)
    made = [grids.index(grid) for call in tower.calls for grid in call]
    rows = features.gather([grid for grid in grids if grid not in errors]).tolist()
    error = features.close()
    return {
        "made": made, "errors": {grids.index(grid): str(error) for grid, error in errors.items()}, "rows": rows,
        "seen": sum(progress), "unshared": features.num_unshared, "damaged": cache.num_damaged if cache else 0,
        "close": error and error.message,
    }  # fmt: skip


def test_ranks_make_shares_and_have_all_features(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    """None is missing, none is made twice; also if some are on disk already, and damaged there."""
    (tmp_path / "cut.png").write_bytes(grids[0].image.path.read_bytes()[:200])
    grids = [*grids[:2], ImageGrid(Image(tmp_path / "cut.png"), 1, 4, 4, 2), *grids[2:]]
    alone = prepare_on_rank(World(), image_processor, grids, None)
    ranks = run_ranks(prepare_on_rank, 3, image_processor, grids, tmp_path)
    assert sorted(i for rank in ranks for i in rank["made"]) == sorted(alone["made"])
    assert all(rank["made"] for rank in ranks)
    assert sum(rank["seen"] for rank in ranks) == len(grids)
    assert count_images(tmp_path / "set") == len(alone["made"])
    for rank in ranks:
        assert (rank["rows"], rank["close"]) == (alone["rows"], None)
        assert rank["errors"] == alone["errors"], "dropped on all ranks"
    assert list(alone["errors"]) == [2]

    # Other ranks than those that made them read them; one damaged image is made again, by one rank.
    rows = tmp_path / "set" / "rows"
    rows.write_bytes(b"\1" + rows.read_bytes()[1:])
    ranks = run_ranks(prepare_on_rank, 2, image_processor, grids, tmp_path)
    assert sorted(len(rank["made"]) for rank in ranks) == sorted(rank["damaged"] for rank in ranks) == [0, 1]
    assert all(rank["rows"] == alone["rows"] for rank in ranks)


@pytest.mark.parametrize("has_folder", [True, False])
def test_ranks_without_a_common_disk_cache_make_all_features(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, has_folder: bool
) -> None:
    """It is full, or there is none."""
    alone = prepare_on_rank(World(), image_processor, grids, None)
    ranks = run_ranks(prepare_on_rank, 2, image_processor, grids, tmp_path if has_folder else None, 8)
    for rank in ranks:
        assert sorted(set(rank["made"])) == list(range(len(grids)))
        assert rank["rows"] == alone["rows"]
        assert (rank["close"] is not None) == has_folder
    assert sum(rank["unshared"] for rank in ranks) == (len(grids) if has_folder else 0)


def exchange_on_rank(
    world: World, image_processor: ImageProcessor, grids: list[ImageGrid], folder: Path, machine_size: int
) -> tuple[int, Any, Any, list[str]]:
    """The ranks are of machines with machine_size ranks each; all have the same folder for temporary files."""
    tempfile.tempdir = str(folder)
    world = replace(world, local_rank=world.rank % machine_size, local_size=machine_size)
    exchange = open_exchange(WIDTH, torch.float32, world)
    features = Features(tower := RecordingTower(), image_processor, is_live=False, disk_cache=exchange)
    features.prepare(grids, world=world)
    world.barrier()
    left = [path.name for path in folder.iterdir()]
    return sum(map(len, tower.calls)), features.gather(grids).tolist(), features.close(), left


def test_ranks_exchange_features_through_a_temporary_folder(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    """One a machine; each is deleted as soon as all have mapped it."""
    alone = prepare_on_rank(World(), image_processor, grids, None)
    results = run_ranks(exchange_on_rank, 4, image_processor, grids, tmp_path, 2)
    assert sum(num_made for num_made, *_ in results) == 2 * len(grids)
    assert all(num_made < len(grids) for num_made, *_ in results)
    assert [others for _, *others in results] == [[alone["rows"], None, []]] * 4


class ThreadWorld(World):
    """Ranks on threads of one process, which CUDA needs here."""

    def gather_objects(self, value: Any) -> list[Any]:
        values, barrier = self.host_group  # type: ignore[misc]
        values[self.rank] = value
        barrier.wait(20)
        return list(values)

    def barrier(self) -> None:
        self.host_group[1].wait(20)  # type: ignore[index]


@CUDA
@pytest.mark.parametrize(("device_bytes", "num_kept"), [(0, 0), (400, None), (10**6, 6)])
def test_ranks_map_what_does_not_fit_on_their_gpus(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, device_bytes: int, num_kept: int | None
) -> None:
    """Nothing is in pinned memory; what `gather` copies from the disk stays on the GPU if there is room."""
    group = [None, None], threading.Barrier(2)
    everything = Features(RecordingTower("cuda"), image_processor, is_live=False)
    everything.prepare(grids)

    def prepare(rank: int) -> None:
        world = ThreadWorld(rank, 2, rank, 2, host_group=group)  # type: ignore[arg-type]
        features = Features(RecordingTower("cuda"), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
        features.limit_device_bytes(device_bytes)
        features.prepare(grids, world=world)
        storage = features._storage
        assert storage._mapped.keys() | storage._features.keys() == set(grids)
        for chosen in (grids, grids[::-2], grids):
            assert torch.equal(features.gather(chosen), everything.gather(chosen))
        assert all(part.is_cuda for part in storage._features.values())
        assert len(storage._features) == num_kept or num_kept is None
        assert features.num_unshared == 0
        assert features.close() is None

    with ThreadPoolExecutor(2) as pool:
        for rank in [pool.submit(prepare, rank) for rank in range(2)]:
            rank.result()


@CUDA
@pytest.mark.parametrize("device_bytes", [0, 400, None])
def test_features_that_do_not_fit_are_in_pinned_memory(
    image_processor: ImageProcessor,
    grids: list[ImageGrid],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device_bytes: int | None,
) -> None:
    monkeypatch.setattr(decode_pool, "MAX_PATCHES_PER_CALL", 60)
    features = Features(RecordingTower("cuda"), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    if device_bytes is not None:
        features.limit_device_bytes(device_bytes)
    features.prepare(grids)
    locations = {
        "device" if part.is_cuda else "pinned"
        for part in features._storage._features.values()
        if part.is_cuda or part.is_pinned()
    }
    assert locations == {0: {"pinned"}, 400: {"pinned", "device"}, None: {"device"}}[device_bytes]
    if device_bytes == 400:
        on_device = [part for part in features._storage._features.values() if part.is_cuda]
        assert {part.untyped_storage().nbytes() for part in on_device} == {400}, "in one piece"
    on_cpu = Features(RecordingTower(), image_processor, is_live=False)
    on_cpu.prepare(grids)
    assert torch.equal(features.gather(grids).cpu(), on_cpu.gather(grids))
    assert features.close() is None
    second = Features(RecordingTower("cuda"), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    second.prepare(grids)
    assert second.num_cached == len(grids)
    assert torch.equal(second.gather(grids).cpu(), on_cpu.gather(grids))
    second.close()


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_both_towers_give_the_same_features(
    tiny_family: Callable[[str], Path],
    image_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
) -> None:
    """From image files, and again from the disk cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = BaseCheckpoint.from_folder(tiny_family(model_type))
    image_processor = ImageProcessor.from_folder(checkpoint.folder, ProcessorSettings(image_size=None))
    grids = make_grids(image_processor, image_files)
    model = getattr(transformers, checkpoint.family.class_name).from_pretrained(checkpoint.folder)
    expected = Features(HfVisionTower(model), image_processor, is_live=False)
    expected.prepare(grids)
    for num_cached in (0, len(grids)):
        cache = open_disk_cache(checkpoint, image_processor, CPU, torch.float32)
        features = build_features(checkpoint, image_processor, CPU, torch.float32, cache)
        features.prepare(grids)
        torch.testing.assert_close(features.gather(grids), expected.gather(grids), atol=1e-5, rtol=0)
        assert not torch.allclose(features.gather(grids), expected.gather(grids[::-1]), atol=1e-3)
        assert features.num_cached == num_cached
        assert features.close() is None


def test_images_are_decoded_once_if_started_early(
    image_processor: ImageProcessor, grids: list[ImageGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    load_resized = decode_pool.load_resized

    def record(path: Path, resize: Any) -> Any:
        paths.append(path)
        return load_resized(path, resize)

    monkeypatch.setattr(decode_pool, "load_resized", record)
    expected, early = (Features(RecordingTower(), image_processor, is_live=False) for _ in range(2))
    expected.prepare(grids)
    paths.clear()
    early.start_decoding(grids)
    assert early.prepare(grids) == {}
    assert early.prepare(grids) == {}
    assert sorted(paths) == sorted(grid.image.path for grid in grids), "each once"
    assert torch.equal(early.gather(grids), expected.gather(grids))


class CallCounter(TorchDispatchMode):
    """Counts the calls to torch inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


STORED_GRIDS = [ImageGrid(Image(Path(f"{i}.png")), 1, 2 * (i + 1), 2, 2) for i in range(3)]


def test_added_features_are_gathered_in_any_order() -> None:
    storage = FeatureStorage(torch.device("cpu"), torch.float32)
    features = torch.arange(6.0)[:, None].expand(6, 2)
    assert storage.add(STORED_GRIDS, features) is features
    assert all(grid in storage for grid in STORED_GRIDS)
    assert storage.gather([STORED_GRIDS[2], STORED_GRIDS[0]])[:, 0].tolist() == [3, 4, 5, 0]


def test_mapped_features_are_kept_without_a_copy() -> None:
    storage, mapped = FeatureStorage(torch.device("cpu"), torch.float32), torch.ones(1, 2)
    storage.add_mapped({STORED_GRIDS[0]: mapped})
    assert STORED_GRIDS[0] in storage
    assert STORED_GRIDS[1] not in storage
    mapped.fill_(2.0)
    assert storage.gather(STORED_GRIDS[:1]).tolist() == [[2.0, 2.0]]


def test_features_left_on_disk_are_read_when_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside others that are kept or mapped; CUDA alone does so, and pins the memory."""
    empty = torch.empty

    def allocate(*sizes: int, pin_memory: bool = False, **options: Any) -> Tensor:
        return empty(*sizes, **options)

    monkeypatch.setattr(torch, "empty", allocate)
    rows = [torch.full((grid.num_tokens, WIDTH), i + 1.0) for i, grid in enumerate(STORED_GRIDS)]
    cache = open_cache(tmp_path)
    cache.append({bytes([0] * 32): rows[0], bytes([2] * 32): rows[2]})
    cache.refresh()
    storage = FeatureStorage(torch.device("cpu"), torch.float32)
    places = {STORED_GRIDS[i]: cache.locate(bytes([i] * 32)) for i in (0, 2)}
    cache.close()
    storage.leave_on_disk({grid: place for grid, place in places.items() if place})
    storage._mapped[STORED_GRIDS[1]] = rows[1]
    for order in ([2, 0, 1, 2], [1, 0, 2]):
        assert torch.equal(storage.gather([STORED_GRIDS[i] for i in order]), torch.cat([rows[i] for i in order]))


@pytest.mark.parametrize("block_bytes", [1, 4000, 1 << 24])
@pytest.mark.parametrize("share_bytes", [0, 3000, 1 << 20])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_features_read_in_blocks_are_those_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, share_bytes: int, device: str
) -> None:
    """In any order, in and beside the device's share; without those that are damaged."""
    monkeypatch.setattr(image_features, "_BLOCK_BYTES", block_bytes)
    grids = [ImageGrid(Image(Path(f"{i}.png")), 1, 2 * (1 + i % 5), 6, 2) for i in range(60)]
    rows = [torch.randn(grid.num_tokens, WIDTH) for grid in grids]
    cache = open_cache(tmp_path)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    cache.append({bytes([i] * 32): rows[i] for i in order})
    cache.refresh()
    wanted, damaged = [*range(0, 60, 2), 7, 9], (order[20], 7)
    places = {grids[i]: cache.locate(bytes([i] * 32)) for i in wanted}
    with open(tmp_path / "set" / "rows", "r+b") as file:
        for i in set(damaged) & set(wanted):
            file.seek(places[grids[i]].offset + 5)
            file.write(b"?")
    storage, progress = FeatureStorage(torch.device(device), torch.float32, share_bytes), list[int]()
    found = storage.add_from_disk(places, on_progress=progress.append)
    assert sorted(found, key=grids.index) == sorted((grids[i] for i in set(damaged) & set(wanted)), key=grids.index)
    assert sum(progress) == len(wanted) - len(found)
    whole = [i for i in reversed(wanted) if grids[i] not in found]
    assert torch.equal(storage.gather([grids[i] for i in whole]).cpu(), torch.cat([rows[i] for i in whole]))
    assert not any(grid in storage for grid in found)
    cache.close()


@pytest.mark.parametrize("how", ["shorter", "deleted"])
def test_features_whose_file_is_damaged_while_a_run_starts_are_made_again(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(image_features, "_BLOCK_BYTES", 1)  # an image each
    first = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    first.prepare(grids)
    first.close()
    cache = open_cache(tmp_path)
    features = Features(RecordingTower(), image_processor, is_live=False, disk_cache=cache)
    features._reads_blocks, features._storage = True, FeatureStorage(CPU, torch.float32, 1 << 20)
    if how == "deleted":
        shutil.rmtree(tmp_path / "set")
    digests = {grid.image.path: hashlib.sha256(grid.image.path.read_bytes()).digest() for grid in grids}
    features.start_decoding(grids, digests=digests)
    if how == "shorter":
        os.truncate(tmp_path / "set" / "rows", 5)
    assert features.prepare(grids) == {}
    assert torch.equal(features.gather(grids), first.gather(grids))
    assert (cache.num_damaged, features.num_cached) == ((len(grids), 0) if how == "shorter" else (0, len(grids)))
    features.close()


def test_the_number_of_images_does_not_change_the_number_of_calls(tmp_path: Path) -> None:
    """Each call to torch may lose Python's lock to another thread. These images are neighbors in the file."""
    grids = [ImageGrid(Image(Path(f"{i}.png")), 1, 2, 2, 2) for i in range(90)]
    cache = open_cache(tmp_path)
    cache.append({bytes([i] * 32): torch.full((1, WIDTH), float(i)) for i in range(90)})
    cache.refresh()
    counts = []
    for count in (3, 90):
        places = {grids[i]: cache.locate(bytes([i] * 32)) for i in range(count)}
        storage = FeatureStorage(CPU, torch.float32, 1 << 20)
        with CallCounter() as counter:
            storage.add_from_disk(places)
        counts.append(counter.count)
    assert counts[0] == counts[1] > 0
    cache.close()


@pytest.mark.parametrize("state", ["all", "some", "damaged", "twice"])
def test_known_digests_change_no_feature_and_no_call_of_the_tower(
    image_processor: ImageProcessor,
    grids: list[ImageGrid],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
) -> None:
    """With them features are read in blocks, and no thread reads the images again. CUDA alone does so."""
    monkeypatch.setattr("lorgnette.features.decode_pool.MAX_PATCHES_PER_CALL", 2 * grids[0].h * grids[0].w)
    if state == "twice":  # other files with the same content
        (tmp_path / "copy.png").write_bytes(grids[0].image.path.read_bytes())
        grids = [*grids, replace(grids[0], image=Image(tmp_path / "copy.png"))]
    first = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path / "a"))
    first.prepare(grids[1:3] if state == "some" else grids)
    first.close()
    if state == "damaged":
        content = bytearray((tmp_path / "a" / "set" / "rows").read_bytes())
        content[3] ^= 1
        (tmp_path / "a" / "set" / "rows").write_bytes(content)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    digests = {grid.image.path: hashlib.sha256(grid.image.path.read_bytes()).digest() for grid in grids}
    hashed, results = list[Path](), []
    monkeypatch.setattr(image_features, "read_key", lambda grid: hashed.append(grid.image.path) or read_key(grid))
    for folder, given in (("a", None), ("b", digests)):
        tower, cache, progress = RecordingTower(), open_cache(tmp_path / folder), list[int]()
        features = Features(tower, image_processor, is_live=False, disk_cache=cache)
        features._reads_blocks, features._storage = True, FeatureStorage(CPU, torch.float32, 1 << 20)
        features.start_decoding(grids, digests=given)
        assert features.prepare(grids, on_progress=progress.append) == {}
        assert sum(progress) == len(grids)
        assert len(hashed) >= len(grids) if given is None else len(hashed) <= sum(map(len, tower.calls))
        hashed.clear()
        results.append((features.gather(grids).tolist(), tower.calls, features.num_cached, cache.num_damaged))
        assert features.close() is None
    assert results[0] == results[1]
    assert bool(results[1][1]) == (state in ("some", "damaged"))


def test_features_of_another_file_are_not_taken(
    image_processor: ImageProcessor, grids: list[ImageGrid], tmp_path: Path
) -> None:
    """A digest that no stored image has finds nothing."""
    first = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    first.prepare(grids)
    first.close()
    features = Features(RecordingTower(), image_processor, is_live=False, disk_cache=open_cache(tmp_path))
    features._reads_blocks = True
    digests = {grid.image.path: hashlib.sha256(b"other").digest() for grid in grids}
    assert features._find_on_disk(grids, digests) == {}
    own = {grid.image.path: hashlib.sha256(grid.image.path.read_bytes()).digest() for grid in grids}
    assert list(features._find_on_disk(grids, own)) == grids
    features.close()
