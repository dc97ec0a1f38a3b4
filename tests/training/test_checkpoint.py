"""Checkpoints are atomic; the newest is found; loading restores what was saved, the random state too."""

import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.errors import LorgnetteError
from lorgnette.training.checkpoint import (
    STATE_FILE,
    find_latest_checkpoint,
    get_rng_state,
    load_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
)

CPU = torch.device("cpu")


def write_adapter(folder: Path) -> None:
    (folder / "adapter").write_text("weights")


def build_state(**more: Any) -> dict[str, Any]:
    return {**more, "random": get_rng_state()}


def test_a_checkpoint_holds_adapter_and_state(tmp_path: Path) -> None:
    saved = {"step": 3, "optimizer": {"m": torch.arange(3)}, "stats": [0.5, 2]}
    path = save_checkpoint(tmp_path / "checkpoints", 3, write_adapter, build_state(**saved))
    assert path == tmp_path / "checkpoints" / "step-000003"
    assert {file.name for file in path.iterdir()} == {"adapter", STATE_FILE}
    loaded = load_checkpoint(path, CPU)
    assert (loaded["step"], loaded["stats"], loaded["optimizer"]["m"].tolist()) == (3, [0.5, 2], [0, 1, 2])
    assert loaded.keys() == saved.keys()


def test_loading_restores_the_random_state(tmp_path: Path) -> None:
    torch.manual_seed(7)
    path = save_checkpoint(tmp_path, 1, write_adapter, build_state())
    expected = torch.rand(4)
    load_checkpoint(path, CPU)
    assert torch.equal(torch.rand(4), expected)


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    assert find_latest_checkpoint(tmp_path / "none") is None
    for step in (100, 999_999, 20, 1_000_000):
        save_checkpoint(tmp_path, step, write_adapter, build_state())
    (tmp_path / "step-2000000").mkdir()  # no state: incomplete
    (tmp_path / ".step-3000000.12.part").mkdir()
    (tmp_path / ".step-3000000.12.part" / STATE_FILE).touch()
    for name in ("step-9000000-backup", "step-", "step-one"):  # a user's own
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE_FILE).touch()
    assert find_latest_checkpoint(tmp_path) == (1_000_000, tmp_path / "step-1000000")


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 20):
        save_checkpoint(tmp_path, step, write_adapter, build_state())
    (tmp_path / "step-1-backup").mkdir()  # a user's own
    (tmp_path / "step-1-backup" / STATE_FILE).touch()
    rotate_checkpoints(tmp_path, best_step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000002", "step-000010", "step-000020", "step-1-backup",
    ]  # fmt: skip
    rotate_checkpoints(tmp_path, best_step=0)  # none yet
    assert find_latest_checkpoint(tmp_path) == (20, tmp_path / "step-000020")
    assert not (tmp_path / "step-000002").exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, write_adapter, build_state(step=1, attempt=1))
    save_checkpoint(tmp_path, 1, write_adapter, build_state(step=1, attempt=2))
    assert load_checkpoint(tmp_path / "step-000001", CPU)["attempt"] == 2
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def small_disk() -> Any:
    """Files of more than 4 kB cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"cannot write: File too large · .*step-000001 · free some space"):
        save_checkpoint(tmp_path, 1, write_adapter, build_state(m=torch.zeros(100_000)))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_cannot_be_written_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_adapter(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(LorgnetteError, match="No space left on device"):
        save_checkpoint(tmp_path, 1, fail, {})
    assert list(tmp_path.iterdir()) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "break_it",
    [
        Path.unlink,
        truncate,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"hello"),
        lambda path: path.write_bytes(pickle.dumps({"step": 1}, 2)),
        lambda path: path.write_bytes(pickle.dumps(print, 2)),
        lambda path: torch.save([1], path),
        lambda path: torch.save({"step": 1}, path),
    ],
    ids=["gone", "truncated", "empty", "words", "pickle", "code", "list", "foreign"],
)
def test_a_broken_state_is_an_error_with_a_hint(tmp_path: Path, break_it: Callable[[Path], Any]) -> None:
    path = save_checkpoint(tmp_path, 1, write_adapter, build_state(step=1))
    break_it(path / STATE_FILE)
    before = torch.get_rng_state()
    with pytest.raises(LorgnetteError, match=r"checkpoint cannot be read: .") as caught:
        load_checkpoint(path, CPU)
    assert len(caught.value.message) < 200
    assert caught.value.where == str(path)
    assert "delete it" in str(caught.value.hint)
    assert torch.equal(torch.get_rng_state(), before)
