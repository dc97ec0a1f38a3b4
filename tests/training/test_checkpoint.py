"""Checkpoints are atomic; the newest is found; loading restores what was saved, the random state too."""

import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorgnette.config import TrainSettings
from lorgnette.distributed import allocate_flat_grad
from lorgnette.errors import LorgnetteError
from lorgnette.training.checkpoint import (
    STATE_FILE,
    find_latest_checkpoint,
    load_checkpoint,
    read_max_tokens,
    restore_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
)
from lorgnette.training.random_state import get_rng_state
from lorgnette.training.trainer import MAX_TOKENS, Trainer

CPU = torch.device("cpu")


def write_adapter(folder: Path) -> None:
    (folder / "adapter").write_text("weights")


def build_state(**more: Any) -> dict[str, Any]:
    return {"step": 1, **more, "random": get_rng_state()}


def test_a_checkpoint_holds_adapter_and_state(tmp_path: Path) -> None:
    saved = {"step": 3, "optimizer": {"m": torch.arange(3)}, "stats": [0.5, 2]}
    path = save_checkpoint(tmp_path / "checkpoints", 3, write_adapter, build_state(**saved))
    assert path == tmp_path / "checkpoints" / "step-000003"
    assert {file.name for file in path.iterdir()} == {"adapter", STATE_FILE}
    loaded = load_checkpoint(path, CPU)
    assert (loaded["step"], loaded["stats"], loaded["optimizer"]["m"].tolist()) == (3, [0.5, 2], [0, 1, 2])
    assert loaded.keys() == saved.keys()


def test_the_random_state_of_mps_is_restored_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[torch.Tensor] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", restored.append)
    torch.save(build_state(), tmp_path / "state.pt")
    load_checkpoint(tmp_path, torch.device("cpu"))
    assert not restored
    load_checkpoint(tmp_path, torch.device("mps"))
    assert [tensor.tolist() for tensor in restored] == [[7]]


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


@pytest.fixture
def trainer() -> Trainer:
    """A trainer of four steps with one parameter of 5 × 3."""
    settings = TrainSettings(batch_size=1, epochs=1)
    sampler = SimpleNamespace(steps_per_epoch=4, total_steps=4, seed=0)
    parameters = [torch.zeros(5, 3)]
    engine = SimpleNamespace(parameters=parameters, flat_grad=allocate_flat_grad(parameters), loss_scale=None)
    return Trainer(engine, sampler, [], settings)  # type: ignore[arg-type]


def test_a_state_is_restored(tmp_path: Path, trainer: Trainer) -> None:
    state = trainer.state_dict()
    path = save_checkpoint(tmp_path, 3, write_adapter, build_state(**{**state, "step": 3, "best": [2, 0.5, 1]}))
    restore_checkpoint(trainer, path, CPU)
    assert (trainer.step, trainer.best_step, trainer.best_score) == (3, 2, 0.5)


def test_the_size_of_micro_batches_is_read_without_the_tensors(tmp_path: Path, trainer: Trainer) -> None:
    """Also after it was lowered. An older version did not save it."""
    trainer.max_tokens_per_microbatch = 7
    state = trainer.state_dict()
    assert read_max_tokens(save_checkpoint(tmp_path, 1, write_adapter, build_state(**state))) == 7
    del state[MAX_TOKENS]
    assert read_max_tokens(save_checkpoint(tmp_path, 2, write_adapter, build_state(**state))) is None


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_broken_state_has_no_size_of_micro_batches(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(LorgnetteError, match=r"checkpoint cannot be read: .* · delete it"):
        read_max_tokens(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": {name: [torch.zeros(1, 3)] for name in ("exp_avg", "exp_avg_sq", "step")}}, "shape .1, 3. inst"),
        ({"optimizer": {name: [] for name in ("exp_avg", "exp_avg_sq", "step")}}, "shorter"),
        ({"optimizer": {"exp_avg": [1]}}, "shape"),
        ({"optimizer": 1}, "subscriptable"),
        ({"step": 5}, "it is of step 5, and the run has 4"),
        ({"step": "3"}, "it is of step 3"),
        ({"stats": {"wrong": 1}}, "unexpected keyword"),
        ({"best": [1, 2]}, "not enough values"),
    ],
    ids=["shape", "fewer", "number", "no-dict", "later", "text", "stats", "best"],
)
def test_a_state_of_another_run_is_an_error_of_one_line(
    tmp_path: Path, trainer: Trainer, changes: dict[str, Any], reason: str
) -> None:
    path = save_checkpoint(tmp_path, 1, write_adapter, build_state(**{**trainer.state_dict(), **changes}))
    with pytest.raises(
        LorgnetteError, match=rf"^checkpoint does not fit this run: .*{reason}.* · delete it; "
    ) as caught:
        restore_checkpoint(trainer, path, CPU)
    assert "\n" not in str(caught.value)


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
        lambda path: torch.save(torch.zeros(3), path),
        lambda path: torch.save({"random": {"cpu": torch.zeros(3)}}, path),
        lambda path: torch.save({"random": [1]}, path),
        lambda path: torch.save({"step": 1}, path),
    ],
    ids=["gone", "truncated", "empty", "words", "pickle", "code", "list", "tensor", "random", "random-list", "foreign"],
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
