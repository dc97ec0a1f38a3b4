"""A plan predicts the training that follows, and fails where the training would."""

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_models import write_small_files

from lorgnette import recipes
from lorgnette.commands.check import check
from lorgnette.commands.model import list_models
from lorgnette.commands.plan import plan
from lorgnette.config import Settings, load_settings
from lorgnette.distributed import World
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import parse_configs
from lorgnette.planning.gpus import GPU_NAMES, GPUS
from lorgnette.planning.limits import MAX_GRAPHS_AHEAD
from lorgnette.planning.memory import GIB, MemoryFit, Workload, find_fit, predict_memory
from lorgnette.processing.tokenizer import TextTokenizer
from lorgnette.report.console import Terminal
from lorgnette.training import setup
from lorgnette.training.data_module import TrainingData
from lorgnette.training.sampler import BatchSampler


@pytest.fixture
def console(terminal_output: io.StringIO) -> Console:
    return Console(file=terminal_output)


def test_a_plan_describes_the_training_that_follows(make_settings: Callable[..., Settings], console: Console) -> None:
    settings = make_settings()
    result = plan(settings, console=console)
    training_data = TrainingData.load(settings, Terminal(console))
    assert (result.examples, result.held_out, result.images) == (4, 2, 6)
    assert result.tokens.max == max(len(encoded.input_ids) for encoded in training_data.examples)
    assert (result.steps.total_steps, result.steps.num_microbatches) == (2, 2)
    assert (result.engine, result.reason) == ("fast", None)
    assert result.workload is not None
    assert result.memory == predict_memory(result.workload)
    assert (result.workload.tokens, result.workload.labels) == result.steps.largest_microbatch
    assert result.workload.tokens > 2 * 20
    assert result.workload.feature_tokens == 6
    assert settings.run is not None
    assert not settings.run.exists()


def test_a_plan_and_a_check_need_no_weights(
    make_settings: Callable[..., Settings], tmp_path: Path, terminal_output: io.StringIO
) -> None:
    """And say what becomes of the image size in a model whose image tokens are 32 pixels wide."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_small_files(folder, "qwen3_vl")
    settings = make_settings(f"model={folder}", "image_size=56")
    assert plan(settings, console=Console(file=terminal_output, width=200)).memory is not None
    note = "image_size 56×56 becomes 64×64: an image token of this model has 32×32 pixels"
    assert f"note       {note}" in terminal_output.getvalue()
    assert note in check(settings.data.path, settings=settings).setting_advice
    with pytest.raises(LorgnetteError, match="checkpoint has no weights"):
        TrainingData.load(settings, Terminal())


@pytest.mark.parametrize(
    "words",
    [
        [], ["data.group_by_image=true", "dtype=float32"], ["lora.dropout=0"], ["train.batch_size=2"],
        ["quantization=nf4"], ["engine=reference"], ["train.fully_shard=false"], ["train.fully_shard=true"],
    ],
)  # fmt: skip
def test_plan_and_train_use_the_same_workload(
    make_settings: Callable[..., Settings], console: Console, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The last two on two GPUs."""
    settings, workloads = make_settings(*words), []
    world = World() if settings.train.fully_shard == "auto" else World(0, 2)

    def record(workload: Workload, *rest: Any) -> MemoryFit:
        workloads.append(workload)
        return find_fit(workload, *rest)

    monkeypatch.setattr(setup, "find_fit", record)
    monkeypatch.setattr(setup, "_connect_gpus", lambda world, device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (24 * GIB, 24 * GIB))
    terminal = Terminal(console)
    data, by_image = TrainingData.load(settings, terminal), settings.data.group_by_image
    sampler = BatchSampler(data.examples, settings.train, settings.seed, group_by_image=by_image)
    result = plan(settings, gpus=world.size, console=console)
    setup.fit_to_memory(settings, data, sampler, result.engine, torch.device("cuda"), terminal, world=world)
    assert [result.workload] == workloads
    assert result.workload.num_graphs == (2 if world.size == 1 else MAX_GRAPHS_AHEAD + 1)


def test_printed_lines(make_settings: Callable[..., Settings], console: Console, terminal_output: io.StringIO) -> None:
    plan(make_settings(), gpu="A100", console=console)
    lines = terminal_output.getvalue().splitlines()
    assert lines[0] == "examples   4 for training, 2 held out; 6 distinct images"
    assert sum("█" in line for line in lines) >= 1
    [machine] = [line for line in lines if line.startswith("machine ")]
    assert "GPU: weights and adapter take 0.00 GiB; the training takes several times longer than " in machine
    assert lines[-4].split() == ["A100", "80", *["less", "than", "0.1", "s", "less", "than", "0.1", "s", "fits"]]
    assert lines[-3] == "           times assume 44% of a GPU's published peak in steps, 35% for images;"


def test_the_plan_as_json(make_settings: Callable[..., Settings], console: Console) -> None:
    values = json.loads(json.dumps(plan(make_settings(), memory=24, console=console).as_dict()))
    memory = values["memory"]
    assert memory["peak_bytes"] == sum(memory["phases"][memory["peak_phase"]].values())
    [card] = values["cards"]
    assert (card["gpu"]["memory_gib"], card["fit"]["recompute_layers"], card["time"]) == (24, 0, None)
    assert values["machine"]["seconds"] > 0
    assert values["layouts"]["padded"] >= values["layouts"]["packed"]


@pytest.mark.parametrize("word", ["model=/nowhere", "data=/nowhere.csv", "max_length=3"])
def test_an_error_of_the_training_is_an_error_of_the_plan(
    make_settings: Callable[..., Settings], console: Console, word: str
) -> None:
    with pytest.raises(LorgnetteError) as trained:
        TrainingData.load(make_settings(word), Terminal(console))
    with pytest.raises(LorgnetteError) as planned:
        plan(make_settings(word), console=console)
    assert str(planned.value) == str(trained.value)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("seed=1", None),
        ("lora.use_rslora=true", None),
        ("engine=fast", None),
        ("engine=reference", "as requested"),
        ("device=cpu", "on a CPU"),
        ("lora.parts=language,merger", "the fast engine does not train the vision tower (lora.parts)"),
    ],
)
def test_the_engine_equals_the_trainings(tiny: Path, word: str, reason: str | None) -> None:
    checkpoint, settings = BaseCheckpoint.from_folder(tiny), load_settings(None, [word])
    assert select_engine(settings, checkpoint.load_hf_config(), on_gpu=settings.device != "cpu") == (
        "reference" if reason else "fast",
        reason,
    )
    if "parts" in word:
        with pytest.raises(UsageError, match="the fast engine does not "):
            select_engine(load_settings(None, [word, "engine=fast"]), checkpoint.load_hf_config(), on_gpu=True)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ([], False),
        (["lora.dropout=0"], True),
        (["data.group_by_image=true"], True),
        (["lora.dropout=0", "engine=reference"], False),
    ],
)
def test_prefix_sharing_depends_on_dropout_and_grouping(
    make_settings: Callable[..., Settings], console: Console, words: list[str], share: bool
) -> None:
    result = plan(make_settings(*words, "train.batch_size=4"), console=console)
    assert select_prefix_sharing(make_settings(*words), result.engine) == share
    shared = "grouped_by_image" if "data.group_by_image=true" in words else "prefix_shared"
    assert result.steps.tokens == getattr(result.layouts, shared if share else "packed")


def test_an_unpredictable_run_says_why(
    make_settings: Callable[..., Settings], console: Console, terminal_output: io.StringIO
) -> None:
    result = plan(make_settings("device=cpu"), console=console)
    assert result.memory is result.workload is None
    assert not result.cards
    assert "memory     memory and time on a GPU are not predicted: " in terminal_output.getvalue()
    assert json.dumps(result.as_dict())


@pytest.mark.parametrize("model_type", ["qwen3_5_moe", "qwen3_vl"])
def test_every_family_is_predicted(
    make_settings: Callable[..., Settings], console: Console, tiny_family: Callable[[str], Path], model_type: str
) -> None:
    result = plan(make_settings(f"model={tiny_family(model_type)}"), console=console)
    assert result.engine == ("fast" if model_type == "qwen3_vl" else "reference")
    assert result.memory is not None
    assert result.memory.peak_items["weights"] > 0
    assert all(card.time for card in result.cards if not card.gpu.obstacle)


def test_a_trained_tower_is_counted(make_settings: Callable[..., Settings], console: Console) -> None:
    result = plan(make_settings("lora.parts=language,vision"), console=console)
    assert result.memory is not None
    assert result.memory.phases["backward"]["vision activations"] > 0


def write_sparse_weights(folder: Path) -> None:
    """A model.safetensors with every tensor of config.json: zeros, which take no space on the disk."""
    config = json.loads((folder / "config.json").read_text())
    text, vision = parse_configs(config)
    header: dict[str, object] = {}
    end = 0
    for name, shape in (text.list_weight_shapes() | vision.list_weight_shapes()).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


@pytest.fixture(scope="module")
def real_tokenizer(shared: Callable[[str], Path]) -> TextTokenizer:
    return TextTokenizer.from_folder(shared("qwen2-vl"))


@pytest.fixture
def job(
    shared: Callable[[str], Path], real_tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    """The tutorial's job on real captions, with Qwen2-VL-2B's configuration and tokenizer, without its weights."""
    folder = tmp_path / "Qwen2-VL-2B-Instruct"
    folder.mkdir()
    for path in shared("qwen2-vl").glob("*.*"):
        shutil.copy(path, folder)
    write_sparse_weights(folder)
    # Every plan reads the tokenizer, and Qwen's 150,000 tokens take half a second.
    monkeypatch.setattr(TextTokenizer, "from_folder", lambda *_, **__: real_tokenizer)

    def settings(*words: str) -> Settings:
        data = shared("coco") / "captions.csv"
        return recipes.load_settings("coco-caption", [f"model={folder}", f"data={data}", "data.max_rows=null", *words])

    return settings


def test_the_plan_of_the_tutorial(job: Callable[..., Settings], console: Console) -> None:
    result = plan(job(), console=console)
    assert result.memory is not None
    items = result.memory.phases["features"]  # the tower is released after that phase
    weights = items["weights"] + items["vision tower"]
    assert weights / 1e9 == pytest.approx(4.42 + 0.25, rel=0.01)  # the checkpoint's file, and the factors in bf16
    assert result.memory.phases["backward"]["adapter"] / 1e9 == pytest.approx(1.18, rel=0.01)
    assert result.layouts.grouped_by_image < 0.3 * result.layouts.packed  # five captions a photograph


@pytest.mark.parametrize(("page", "begin", "gpus"), [("will-it-fit", "examples ", 1), ("many-gpus", "4 GPUs ", 4)])
def test_the_figures_of_a_guide_equal_the_plan(
    job: Callable[..., Settings], terminal_output: io.StringIO, page: str, begin: str, gpus: int
) -> None:
    plan(job(), gpus=gpus, console=Console(file=terminal_output, width=500))
    printed = [line.rstrip() for line in terminal_output.getvalue().splitlines()]
    guide = Path(__file__).parents[2] / "docs" / "guides" / f"{page}.md"
    [block] = [text for text in guide.read_text(encoding="utf-8").split("```") if text.startswith(f"\n{begin}")]
    lines = [line for line in block.strip().splitlines() if line.strip() != "…"]
    assert len(lines) > 4
    assert [line for line in lines if line not in printed] == []


def test_less_memory_reduces_tokens_first(
    job: Callable[..., Settings], console: Console, terminal_output: io.StringIO
) -> None:
    large = job("train.batch_size=64", "image_size=560")
    result = plan(large, console=console)
    fits = {card.gpu.name: card.fit for card in result.cards}
    assert fits["RTX 3060"].max_tokens < fits["H200"].max_tokens
    assert "fits with train.max_tokens_per_microbatch=" in terminal_output.getvalue()


def test_the_gpus_of_the_command_line(cli) -> None:
    for name in GPU_NAMES:
        assert name in " ".join(cli("plan", "--help").out.split())


def test_what_a_card_needs_is_named(job: Callable[..., Settings], terminal_output: io.StringIO) -> None:
    [card] = plan(job("lora.rank=512"), memory=8, console=Console(file=terminal_output, width=200)).cards
    assert card.settings == ("quantization=nf4", "lora.rank=8")
    assert f"needs quantization=nf4 lora.rank=8: {card.fit.peak_bytes / GIB:.1f} GiB" in terminal_output.getvalue()


def test_several_gpus_share_a_step(job: Callable[..., Settings], terminal_output: io.StringIO) -> None:
    """The tutorial's step leaves each of four little to do: the plan says so, and how many examples would be enough."""
    console = Console(file=terminal_output, width=500)
    (alone,), (few,) = (plan(job(), gpu="H100", gpus=n, console=console).cards for n in (1, 4))
    assert few.fit.peak_bytes < alone.fit.peak_bytes, "each has a quarter of the tokens"
    assert few.fit.num_shards == 1
    assert few.parallel.tokens == pytest.approx(16 * 138 / 4, rel=0.03)
    assert few.time.steps_s == pytest.approx(alone.time.steps_s / few.parallel.speedup, rel=0.02)
    assert few.time.features_s == pytest.approx(alone.time.features_s / 4)
    printed = terminal_output.getvalue()
    [enough] = re.findall(r"gain +H100: 4 GPUs with 5\d\d tokens each .*\n +they .* train.batch_size=(\d+), ", printed)
    assert "\n4 GPUs " in printed
    assert alone.parallel is None
    [many] = plan(job(f"train.batch_size={enough}"), gpu="H100", gpus="4", console=console).cards
    assert many.parallel.pays
    assert "they are used well from" not in terminal_output.getvalue().removeprefix(printed)


def test_layers_are_sharded_where_they_fit_no_card(job: Callable[..., Settings], terminal_output: io.StringIO) -> None:
    """Before anything that would change the model, and only there."""
    console = Console(file=terminal_output, width=500)
    words = ("lora.rank=8", "train.batch_size=4", "data.max_rows=60")
    alone, four = (plan(job(*words), memory=4, gpus=n, console=console).cards[0] for n in (1, 4))
    assert (alone.settings, alone.fit.num_shards) == (("quantization=nf4",), 1)
    assert (four.settings, four.fit.num_shards) == ((), 4)
    assert "fits with the layers sharded over 4 GPUs" in terminal_output.getvalue()
    never, always = (
        plan(job(*words, f"train.fully_shard={choice}"), memory=4, gpus=4, console=console) for choice in (False, True)
    )
    assert never.cards[0].settings == ("quantization=nf4",)
    assert always.memory.peak_items["gathered layers"] > 0
    assert "gathered layers" not in never.memory.peak_items


def test_the_gpus_of_this_machine(
    make_settings: Callable[..., Settings], terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, two = Console(file=terminal_output, width=500), [replace(GPUS["H100"], memory_gib=70.0)] * 2
    for module in ("planning.gpus", "training.start_warnings"):
        monkeypatch.setattr(f"lorgnette.{module}.find_gpus", lambda: two)
    assert plan(make_settings(), console=console).num_gpus == 1
    assert "has 2 GPUs: `train` uses one, and with gpus=all every one" in terminal_output.getvalue()
    result = plan(make_settings(), gpus="all", console=console)
    assert result.num_gpus == result.machine.parallel.num_gpus == 2
    assert "machine    2 × H100, 70.0 GiB free on the first: fits" in terminal_output.getvalue()
    assert json.loads(json.dumps(result.as_dict()))["machine"]["parallel"]["num_gpus"] == 2
    plan(make_settings(), gpus=4, console=console)
    assert "has 2 GPUs: the training would not start here with gpus=4" in terminal_output.getvalue()
    monkeypatch.setattr("lorgnette.planning.gpus.find_gpus", lambda: [])
    assert plan(make_settings(), gpus="all", console=console).num_gpus == 1
    for gpus in (0, "-1", "two"):
        with pytest.raises(UsageError, match="no number of GPUs · gpus="):
            plan(make_settings(), gpus=gpus, console=console)


def test_a_gpu_in_any_letter_case(make_settings: Callable[..., Settings], console: Console) -> None:
    [card] = plan(make_settings(), gpu="rtx 3090", console=console).cards
    assert card.gpu.name == "RTX 3090"
    with pytest.raises(UsageError, match="no such GPU") as caught:
        plan(make_settings(), gpu="GTX 1080", console=console)
    assert "--memory 16" in caught.value.hint


def test_a_gpu_without_bfloat16(
    make_settings: Callable[..., Settings], console: Console, terminal_output: io.StringIO
) -> None:
    """It computes in float16, beside which the reference engine holds the tower in float32."""
    (t4,), (l4,) = (plan(make_settings("engine=reference"), gpu=gpu, console=console).cards for gpu in ("T4", "L4"))
    assert t4.fit.peak_bytes > l4.fit.peak_bytes
    [explicit] = plan(make_settings("engine=reference", "dtype=float16"), gpu="L4", console=console).cards
    assert explicit.fit.peak_bytes == t4.fit.peak_bytes
    assert (t4.note, l4.note, explicit.note) == ("in float16", "", "")
    [card] = plan(make_settings("dtype=bfloat16"), gpu="T4", console=console).cards
    assert card.fit is None
    assert terminal_output.getvalue().count("not with dtype=bfloat16") == 1


def test_what_does_not_fit_says_what_is_missing(
    make_settings: Callable[..., Settings], terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card, and in the memory beside a CPU. A card with as much as is missing fits."""
    monkeypatch.setattr("lorgnette.commands.plan.find_gpu", lambda: None)
    monkeypatch.setattr("lorgnette.commands.plan.read_memory_gib", lambda: 1e-6)
    settings = make_settings("quantization=nf4")
    console = Console(file=terminal_output, width=500)
    [card] = plan(settings, memory=1, console=console).cards
    assert card.fit is None
    assert ": the training does not fit this machine" in terminal_output.getvalue()
    least = float(re.search(r"does not fit: it takes at least (.*) GiB", terminal_output.getvalue())[1])
    [card] = plan(settings, memory=least + 1.1, console=console).cards
    assert card.fit is not None
    assert "in steps, 35% for images, without the time of NF4;" in terminal_output.getvalue()
    [card] = plan(settings, memory=least + 0.9, console=console).cards
    assert card.fit is None


def test_bfloat16_is_slow_on_a_cpu(
    make_settings: Callable[..., Settings], console: Console, terminal_output: io.StringIO
) -> None:
    plan(make_settings("dtype=bfloat16", "device=cpu"), console=console)
    assert "bfloat16 is slow on a CPU; leave dtype=auto" in terminal_output.getvalue()


def test_what_is_known_of_a_model_that_no_hub_gives(
    make_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, **rest: object) -> Path:
        raise LorgnetteError("neither hub gives it", where=name, hint="check the network")

    monkeypatch.setattr("lorgnette.hub.models.find_in_cache", lambda name, **options: None)
    monkeypatch.setattr("lorgnette.hub.models.fetch_model", fail)
    [entry] = [entry for entry in list_models(cached=False) if "Qwen/Qwen3-VL-4B-Instruct" in entry.names]
    figure = rf"{entry.memory_bytes / GIB:.1f} GiB of GPU memory for a typical run, engine fast .*check the network"
    with pytest.raises(LorgnetteError, match=rf"neither hub gives it · .*: {figure}"):
        plan(make_settings("model=qwen3-vl-4b"))
    with pytest.raises(LorgnetteError, match="neither hub gives it · me/mine · check the network"):
        plan(make_settings("model=me/mine"))
