"""The model of a training on a CPU, by either engine: the same losses."""

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lorgnette.config import ProcessorSettings, Settings, TrainSettings
from lorgnette.distributed import World
from lorgnette.engine.fast import FastEngine
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.errors import UsageError
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.planning import memory
from lorgnette.planning.memory import GIB, MemoryFit
from lorgnette.processing.dropout_keys import derive_step_key
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.packing import split_into_microbatches
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.training import setup
from lorgnette.training.checkpoint import STATE_FILE
from lorgnette.training.data_module import TrainingData
from lorgnette.training.feature_stage import limit_progress
from lorgnette.training.optimizer import Optimizer
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.setup import TrainingSetup
from lorgnette.training.trainer import MAX_TOKENS
from tests.ranks import run_ranks

PrepareRun = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def take_step(setup: TrainingSetup) -> float:
    """One optimizer step on all examples; the loss before it minus the loss after."""
    batch, *more = split_into_microbatches([*setup.data.examples], setup.max_tokens_per_microbatch)
    assert not more
    before = setup.engine.compute_loss(batch).item()
    Optimizer(setup.engine.parameters, TrainSettings()).step(setup.engine.backward(batch), 1e-2)
    setup.engine.sync_weights()
    return before - setup.engine.compute_loss(batch).item()


@pytest.mark.parametrize(("engine", "kind"), [("fast", FastEngine), ("reference", ReferenceEngine)])
def test_a_model_is_built_and_takes_a_step(
    prepare_run: PrepareRun, terminal_output: io.StringIO, engine: str, kind: type
) -> None:
    setup = prepare_run(f"engine={engine}", "lora.dropout=0").build()
    assert f"engine     {engine}" in terminal_output.getvalue()
    assert type(setup.engine) is kind
    before = setup.copy_adapter()
    assert len(before) == 2 * 7 * 2
    assert all(not tensor.any() for name, tensor in before.items() if "lora_B" in name)
    assert setup.max_tokens_per_microbatch >= max(len(e.input_ids) for e in setup.data.examples)
    assert setup.features.gather(setup.data.grids[:1]).shape[1] == 64
    assert take_step(setup) > 0.01
    assert all(tensor.any() for tensor in setup.copy_adapter().values())
    assert not any(tensor.any() for name, tensor in before.items() if "lora_B" in name), "a copy does not change"
    setup.features.close()


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_training_is_fitted_into_the_memory_that_is_free(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, terminal_output: io.StringIO, engine: str
) -> None:
    settings = make_settings(f"engine={engine}")
    terminal = Terminal(Console(file=terminal_output, width=200))
    data = TrainingData.load(settings, terminal)
    sampler = BatchSampler(data.examples, settings.train, settings.seed, group_by_image=False)
    longest = max(len(encoded.input_ids) for encoded in [*data.examples, *data.held_out])

    def fit(gib: float, kept_tokens: int | None = None, loaded: MemoryFit | None = None) -> MemoryFit:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gib * GIB), 0))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        return setup.fit_to_memory(settings, data, sampler, engine, torch.device("cuda"), terminal, kept_tokens, loaded)

    assert fit(4).max_tokens == settings.train.max_tokens_per_microbatch
    assert (fit(4).pool_bytes > 0) == (engine == "fast")
    assert "memory" not in terminal_output.getvalue()
    least = fit(0.3)
    assert (least.max_tokens, least.is_loaded_in_turn) == (longest, True)
    assert (least.recompute_layers > 0) == (engine == "fast")
    assert f"GiB free: micro-batches of at most {longest} tokens" in terminal_output.getvalue()
    assert fit(4, loaded=fit(4)) == fit(4), "it still fits"
    if engine == "fast":
        assert fit(0.27, loaded=fit(4)).max_tokens == longest, "kernels took more than was thought"
    for gib in (0.3, 4):
        assert fit(gib, kept_tokens=longest + 1).max_tokens == longest + 1, "a resumed run keeps its micro-batches"
        assert fit(gib, kept_tokens=longest - 1).max_tokens == longest - 1, "halved when out of memory"
    assert (fit(0.3, kept_tokens=longest + 1).recompute_layers > 0) == (engine == "fast")
    monkeypatch.setattr(setup, "has_known_sizes", lambda config: False)
    assert fit(0.3).max_tokens == settings.train.max_tokens_per_microbatch, "nothing is predicted"


def test_the_vision_tower_stays_where_memory_allows(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    """Features of many images are made beside the steps; nothing else is reduced for it."""
    monkeypatch.setattr(memory, "MIN_IMAGES_BESIDE_STEPS", 6)
    settings = make_settings()
    data = TrainingData.load(settings, terminal)
    sampler = BatchSampler(data.examples, settings.train, settings.seed, group_by_image=False)

    def fit(free: int, loaded: MemoryFit | None = None, on_bad_row: str = "error", engine: Any = "fast") -> MemoryFit:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        rows = settings.data.model_copy(update={"on_bad_row": on_bad_row})
        chosen = settings.model_copy(update={"data": rows})
        return setup.fit_to_memory(chosen, data, sampler, engine, torch.device("cuda"), terminal, None, loaded)

    kept, plain = fit(4 * GIB), fit(4 * GIB, on_bad_row="skip")
    assert (kept.keeps_tower, plain.keeps_tower) == (True, False)
    assert kept.peak_bytes > plain.peak_bytes
    least = next(free for free in range(2**28, 4 * GIB, 2**20) if fit(free).keeps_tower)
    below = fit(least - 2**20)
    assert not below.keeps_tower
    assert below == fit(least - 2**20, on_bad_row="skip")
    assert (below.max_tokens, below.recompute_layers, below.is_loaded_in_turn) == (kept.max_tokens, 0, False)
    assert fit(4 * GIB, loaded=kept).keeps_tower
    assert not fit(4 * GIB, loaded=plain).keeps_tower
    assert not fit(4 * GIB, engine="reference").keeps_tower
    monkeypatch.setattr(memory, "MIN_IMAGES_BESIDE_STEPS", 7)
    assert fit(4 * GIB) == plain


def test_a_resumed_run_keeps_its_micro_batches(prepare_run: PrepareRun, saved: Path, tmp_path: Path) -> None:
    """They may have been smaller than now, where more memory is free: PEFT draws a dropout mask for each."""
    checkpoint = shutil.copytree(saved, tmp_path / "step-000001")
    run = prepare_run("engine=reference")
    for state, expected in (({MAX_TOKENS: 41}, 41), ({}, run.settings.train.max_tokens_per_microbatch)):
        torch.save(state, checkpoint / STATE_FILE)
        assert run.build(resume_from=checkpoint).max_tokens_per_microbatch == expected


def test_damaged_features_are_computed_again(
    prepare_run: PrepareRun, terminal_output: io.StringIO, tmp_path: Path
) -> None:
    """Zeros on the disk would train another adapter."""
    features = []
    for number in range(3):
        setup = prepare_run("engine=fast", f"run={tmp_path / str(number)}").build()
        features.append(setup.features.gather(setup.data.grids).clone())
        num_cached = setup.features.num_cached
        setup.features.close()
        assert num_cached == (0, 5, 6)[number]
        assert ("features of 1 images were damaged on disk, and are computed again" in terminal_output.getvalue()) is (
            number > 0
        )
        [rows] = tmp_path.rglob("features/*/rows")
        content = rows.read_bytes()
        if number == 0:
            rows.write_bytes(bytes(64) + content[64:])
    torch.testing.assert_close(features[0], features[1])  # in a call of one image, which rounds otherwise
    assert torch.equal(features[1], features[2])


def open_cache_on_rank(world: World, tiny: Path, folder: Path, num_usable: int) -> tuple[bool | None, str]:
    """Whether the rank's cache is temporary, and what it says. The first `num_usable` ranks can write to theirs."""
    os.environ["XDG_CACHE_HOME"] = str(folder if world.rank < num_usable else tiny / "config.json")
    tempfile.tempdir = str(folder)
    image_processor = ImageProcessor.from_folder(tiny, ProcessorSettings(image_size=None))
    terminal = Terminal(Console(file=(output := io.StringIO()), width=200))
    checkpoint, cpu = BaseCheckpoint.from_folder(tiny), torch.device("cpu")
    cache = setup._open_disk_cache(checkpoint, image_processor, cpu, torch.float32, world, terminal)
    return cache and cache.is_temporary, output.getvalue()


def test_all_ranks_have_one_disk_cache_or_exchange_features_without(tiny: Path, tmp_path: Path) -> None:
    assert run_ranks(open_cache_on_rank, 2, tiny, tmp_path, 2) == [(False, "")] * 2
    (first, _), (second, warning) = run_ranks(open_cache_on_rank, 2, tiny, tmp_path, 1)
    assert first is second is True
    assert "image features are not cached on disk: " in warning
    assert run_ranks(open_cache_on_rank, 1, tiny, tmp_path, 0)[0][0] is None


def build_with_less_memory(world: World, run: Any) -> tuple[int, int, str]:
    """Tokens of a micro-batch: those that fit this rank, and those of the training. The second rank has less memory."""
    fit, output = MemoryFit(400 - 100 * world.rank, 0, 0), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "fit_to_memory", lambda *inputs: fit)
        run = replace(run, terminal=Terminal(Console(file=output, width=200)))
        return fit.max_tokens, run.build(world=world).max_tokens_per_microbatch, output.getvalue()


def test_all_ranks_have_micro_batches_of_one_size(prepare_run: PrepareRun) -> None:
    """Else each cuts the held-out examples otherwise: of the pieces that are dealt, some are missing or there twice."""
    (first, *agreed, output), (second, *others, _) = run_ranks(build_with_less_memory, 2, prepare_run("engine=fast"))
    assert agreed == others == [second] == [300] != [first]
    assert "memory     another GPU has less: micro-batches of at most 300 tokens" in output


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_seed_decides_dropout(prepare_run: PrepareRun, tmp_path: Path, engine: str) -> None:
    """Random numbers drawn before do not matter; another seed drops other values."""
    losses = []
    for i, seed in enumerate((3, 3, 4)):
        torch.rand(i)
        words = ("lora.dropout=0.5", f"seed={seed}", f"run={tmp_path / str(i)}")
        setup = prepare_run(f"engine={engine}", *words).build()
        take_step(setup)  # before it B is zero, and dropout does not show
        batch, *_ = split_into_microbatches(
            setup.data.examples, setup.max_tokens_per_microbatch, step_key=derive_step_key(seed, 1)
        )
        losses.append(setup.engine.backward(batch).item())
        assert losses[-1] != pytest.approx(setup.engine.compute_loss(batch).item(), rel=1e-5)
        setup.features.close()
    assert losses[0] == losses[1] != losses[2]


def test_auto_on_a_cpu_selects_the_reference_engine_and_says_why(
    prepare_run: PrepareRun, terminal_output: io.StringIO
) -> None:
    assert type(prepare_run().build().engine) is ReferenceEngine
    assert "engine     reference (on a CPU)" in terminal_output.getvalue()


def test_fast_refuses_a_trained_vision_tower(prepare_run: PrepareRun, terminal_output: io.StringIO) -> None:
    with pytest.raises(UsageError, match="does not train the vision tower") as caught:
        prepare_run("engine=fast", "lora.parts=vision").build()
    assert (caught.value.where, caught.value.hint) == ("engine=fast", "use engine=auto")
    assert "engine  " not in terminal_output.getvalue()


def test_both_engines_train_the_same_adapter(prepare_run: PrepareRun, tmp_path: Path) -> None:
    """Losses and the written adapter; another seed changes both."""
    losses, adapters = [], []
    for engine, seed in (("fast", 0), ("reference", 0), ("fast", 1)):
        words = ("train.learning_rate=1e-3", "train.logging_steps=1", "lora.dropout=0", f"seed={seed}")
        run = prepare_run(f"engine={engine}", f"run={tmp_path / f'{engine}{seed}'}", *words)
        run.train()
        losses.append([record["loss"] for record in run_log.read_log(run.run_dir.log) if record["kind"] == "train"])
        adapters.append(load_file(run.run_dir.adapter / WEIGHTS_FILE))
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-5)
    fast, reference, other_seed = adapters
    assert fast.keys() == reference.keys()
    for name, tensor in fast.items():
        torch.testing.assert_close(tensor, reference[name], atol=2e-6, rtol=0)
    assert any((tensor - other_seed[name]).abs().max() > 1e-3 for name, tensor in fast.items())


def test_progress_counts_the_images_of_the_data_only() -> None:
    counts: list[tuple[str, int]] = []
    advance = limit_progress(30, *(lambda count, note="", who=who: counts.append((who, count)) for who in "ab"))
    for count in (16, 15):
        advance(count)
    assert counts == [("a", 16), ("b", 16), ("a", 14), ("b", 14)]


def test_the_run_repeats_the_first_steps() -> None:
    sampler: Any = SimpleNamespace(total_steps=62, batch_size=16)
    assert setup.count_repeats(sampler, 1024, World()) == 1, "all steps are packed ahead"
    assert setup.count_repeats(sampler, 496, World()) == 2
    four: Any = SimpleNamespace(size=4)
    assert setup.count_repeats(sampler, 496, four) == 0.5
