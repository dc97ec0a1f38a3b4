"""A training's model on a CPU, by our engine when it is asked for: the same losses as the reference's."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorgnette.config import TrainSettings
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.errors import UsageError
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.report import run_log
from lorgnette.training import run
from lorgnette.training.job import Job
from lorgnette.training.optimizer import Optimizer
from lorgnette.training.setup import TrainingSetup, build_training


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def stepped(made: TrainingSetup) -> float:
    """One optimizer step on all examples; the loss before it less the loss after."""
    batch, *more = split_into_microbatches([*made.data.examples], made.max_tokens_per_microbatch)
    assert not more
    before, optimizer = made.engine.compute_loss(batch).item(), Optimizer(made.engine.parameters, TrainSettings())
    optimizer.step(made.engine.backward(batch, 0), 1e-2)
    made.engine.sync_weights()
    return before - made.engine.compute_loss(batch).item()


@pytest.mark.parametrize(("engine", "kind"), [("fast", FastEngine), ("reference", ReferenceEngine)])
def test_a_model_is_made_ready_and_takes_a_step(
    job: Callable[..., Job], said: io.StringIO, engine: str, kind: type
) -> None:
    ready = build_training(job("device=cpu", f"engine={engine}", "lora.dropout=0"), None)
    assert f"engine     {engine}" in said.getvalue()
    assert type(ready.engine) is kind
    assert len(ready.copy_adapter()) == 2 * 7 * 2
    assert all(not tensor.any() for name, tensor in ready.copy_adapter().items() if "lora_B" in name)
    assert ready.max_tokens_per_microbatch >= max(len(e.input_ids) for e in ready.data.examples)
    assert ready.features.gather(ready.data.grids[:1]).shape[1] == 64
    before = ready.copy_adapter()
    assert stepped(ready) > 0.01
    assert all(tensor.any() for tensor in ready.copy_adapter().values())
    assert not any(tensor.any() for name, tensor in before.items() if "lora_B" in name), "a copy stays what it was"
    ready.features.close()


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_what_dropout_drops_is_the_seeds(job: Callable[..., Job], tmp_path: Path, engine: str) -> None:
    """Whatever was drawn before; another seed drops something else."""
    found = []
    for i, seed in enumerate((3, 3, 4)):
        torch.rand(i)
        words = ("lora.dropout=0.5", f"seed={seed}", f"run={tmp_path / str(i)}")
        made = build_training(job("device=cpu", f"engine={engine}", *words), None)
        stepped(made)  # until then B is zero, and what is dropped before it does not show
        batch = split_into_microbatches(made.data.examples, made.max_tokens_per_microbatch)[0]
        found.append(made.engine.backward(batch, 1).item())
        assert found[-1] != pytest.approx(made.engine.compute_loss(batch).item(), rel=1e-5)
        made.features.close()
    assert found[0] == found[1] != found[2]


def test_auto_on_a_cpu_says_why_it_is_the_reference(job: Callable[..., Job], said: io.StringIO) -> None:
    made = build_training(job("device=cpu"), None)
    assert type(made.engine) is ReferenceEngine
    assert "engine     reference (on a CPU)" in said.getvalue()


def test_fast_is_refused_for_a_tower_that_is_trained(job: Callable[..., Job], said: io.StringIO) -> None:
    with pytest.raises(UsageError, match="vision tower is trained") as caught:
        build_training(job("device=cpu", "engine=fast", "lora.parts=vision"), None)
    assert (caught.value.where, caught.value.hint) == ("engine=fast", "use engine=auto")
    assert "engine  " not in said.getvalue()


def test_a_training_is_the_same_by_either_engine(job: Callable[..., Job], tmp_path: Path) -> None:
    """Losses and the adapter that is written; with another seed both are others."""
    losses, adapters = [], []
    for engine, seed in (("fast", 0), ("reference", 0), ("fast", 1)):
        words = ("train.learning_rate=1e-3", "train.logging_steps=1", "lora.dropout=0", f"seed={seed}")
        made = job("device=cpu", f"engine={engine}", f"run={tmp_path / f'{engine}{seed}'}", *words)
        run.run_training(made)
        losses.append([record["loss"] for record in run_log.read_log(made.folder.log) if record["kind"] == "train"])
        adapters.append(load_file(made.folder.adapter / WEIGHTS_FILE))
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)
    fast, reference, other = adapters
    assert fast.keys() == reference.keys()
    for name, tensor in fast.items():
        torch.testing.assert_close(tensor, reference[name], atol=2e-6, rtol=0)
    assert any((tensor - other[name]).abs().max() > 1e-3 for name, tensor in fast.items())
