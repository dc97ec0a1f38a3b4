"""A plan says what a training will be, and stops where the training would."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file

from lorgnette import recipes
from lorgnette.commands.plan import plan
from lorgnette.config import Settings, load_settings
from lorgnette.engine.select import select_engine, select_prefix_sharing
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import load_hf_config
from lorgnette.planning.memory import predict_memory
from lorgnette.planning.throughput import GPU_TFLOPS
from lorgnette.report.console import Terminal
from lorgnette.training.data_module import TrainingData


@pytest.fixture
def console(said: io.StringIO) -> Console:
    return Console(file=said)


def test_a_plan_is_the_training_that_follows(chosen: Callable[..., Settings], console: Console) -> None:
    settings = chosen()
    made = plan(settings, console=console)
    material = TrainingData.load(settings, Terminal(console))
    assert (made.examples, made.held_out, made.images) == (4, 2, 6)
    assert made.tokens.max == max(len(encoded.input_ids) for encoded in material.examples)
    assert (made.steps.total_steps, made.steps.num_microbatches) == (2, 2)
    assert (made.engine, made.reason) == ("fast", None)
    assert made.workload is not None
    assert made.memory == predict_memory(made.workload)
    assert made.workload.tokens == made.steps.largest_microbatch[0] > 2 * 20
    assert made.workload.feature_tokens == 6
    assert settings.run is not None
    assert not settings.run.exists()


def test_what_is_said(chosen: Callable[..., Settings], console: Console, said: io.StringIO) -> None:
    plan(chosen(), gpu="A100", console=console)
    lines = said.getvalue().splitlines()
    assert lines[0] == "examples   4 trained on, 2 held out; 6 distinct pictures"
    assert sum("█" in line for line in lines) >= 1
    assert lines[-2] == "     8 GiB or more fit it as it is"
    assert lines[-1].startswith("time       less than 0.1 s of steps, ")
    assert lines[-1].endswith(" on one A100, assuming 137 and 109 of its 312 TFLOP/s")


def test_json_holds_all_of_it(chosen: Callable[..., Settings], console: Console) -> None:
    found = json.loads(json.dumps(plan(chosen(), memory=24, console=console).as_dict()))
    assert found["memory"]["peak"] == sum(found["memory"]["moments"][found["memory"]["fullest"]].values())
    assert list(found["fits"]) == ["24"]
    assert found["time"]["steps_s"] > 0
    assert found["rows"]["padded"] >= found["rows"]["packed"]


@pytest.mark.parametrize("word", ["model=/nowhere", "data=/nowhere.csv", "max_length=3"])
def test_what_stops_a_training_stops_its_plan(chosen: Callable[..., Settings], console: Console, word: str) -> None:
    with pytest.raises(LorgnetteError) as trained:
        TrainingData.load(chosen(word), Terminal(console))
    with pytest.raises(LorgnetteError) as planned:
        plan(chosen(word), console=console)
    assert str(planned.value) == str(trained.value)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("seed=1", None),
        ("lora.use_rslora=true", None),
        ("engine=fast", None),
        ("engine=reference", "as asked for"),
        ("device=cpu", "on a CPU"),
        ("lora.parts=language,merger", "the vision tower is trained, and features are live"),
    ],
)
def test_the_engine_is_the_trainings(tiny: Path, word: str, why: str | None) -> None:
    checkpoint, settings = BaseCheckpoint.from_folder(tiny), load_settings(None, [word])
    assert select_engine(settings, load_hf_config(checkpoint), on_gpu=settings.device != "cpu") == (
        "reference" if why else "fast",
        why,
    )
    if "towers" in word:
        with pytest.raises(UsageError, match="the fast engine cannot do this"):
            select_engine(load_settings(None, [word, "engine=fast"]), load_hf_config(checkpoint), on_gpu=True)


@pytest.mark.parametrize(
    ("words", "share"),
    [
        ([], "none"),
        (["lora.dropout=0"], "tree"),
        (["data.group_by_image=true"], "tree"),
        (["lora.dropout=0", "engine=reference"], "none"),
    ],
)
def test_what_is_shared(chosen: Callable[..., Settings], console: Console, words: list[str], share: str) -> None:
    made = plan(chosen(*words, "train.batch_size=4"), console=console)
    assert select_prefix_sharing(chosen(*words), made.engine) == share
    grouped = "data.group_by_image=true" in words
    epoch = (
        made.layouts.packed
        if share == "none"
        else made.layouts.grouped_by_image
        if grouped
        else made.layouts.prefix_shared
    )
    assert made.steps.tokens == epoch


@pytest.mark.parametrize("word", ["device=cpu", "hidden_act"])
def test_what_cannot_be_predicted_is_said(
    chosen: Callable[..., Settings], console: Console, said: io.StringIO, tiny: Path, tmp_path: Path, word: str
) -> None:
    if word == "hidden_act":
        odd = shutil.copytree(tiny, tmp_path / "odd")
        (odd / "config.json").write_text(json.dumps(json.loads((odd / "config.json").read_text()) | {word: "gelu"}))
        word = f"model={odd}"
    made = plan(chosen(word), console=console)
    assert made.memory is made.time is made.workload is None
    assert "memory     not predicted, nor is time: " in said.getvalue()
    assert json.dumps(made.as_dict())


def test_an_open_tower_is_counted(chosen: Callable[..., Settings], console: Console) -> None:
    made = plan(chosen("lora.parts=language,vision"), console=console)
    assert made.memory is not None
    assert made.memory.phases["backward"]["vision activations"] > 0


@pytest.fixture
def job(shared: Callable[[str], Path], tmp_path: Path) -> Callable[..., Settings]:
    """The tutorial's job on real captions, with Qwen2-VL-2B's configuration and tokenizer, without its weights."""
    folder = tmp_path / "Qwen2-VL-2B-Instruct"
    folder.mkdir()
    for path in shared("qwen2-vl").glob("*.*"):
        shutil.copy(path, folder)
    save_file({}, folder / "model.safetensors")

    def settings(*words: str) -> Settings:
        data = shared("coco") / "captions.csv"
        return recipes.load_settings("coco-caption", [f"model={folder}", f"data={data}", "data.max_rows=null", *words])

    return settings


def test_the_tutorials_job(job: Callable[..., Settings], console: Console) -> None:
    made = plan(job(), console=console)
    assert made.memory is not None
    begun = made.memory.phases["features"]  # the tower goes once they are made
    weights = begun["weights"] + begun["vision tower"]
    assert weights / 1e9 == pytest.approx(4.42 + 0.25, rel=0.01)  # the checkpoint's file, and the factors in bf16
    assert made.memory.phases["backward"]["adapter"] / 1e9 == pytest.approx(1.18, rel=0.01)
    assert made.layouts.grouped_by_image < 0.3 * made.layouts.packed  # five captions a photograph


def test_the_guides_figures_are_what_plan_says(job: Callable[..., Settings], said: io.StringIO) -> None:
    plan(job(), console=Console(file=said, width=500))
    told = [line.rstrip() for line in said.getvalue().splitlines()]
    guide = Path(__file__).parents[2] / "docs" / "guides" / "will-it-fit.md"
    [block] = [text for text in guide.read_text(encoding="utf-8").split("```") if text.startswith("\nexamples ")]
    lines = [line for line in block.strip().splitlines() if line.strip() != "…"]
    assert len(lines) > 12
    assert [line for line in lines if line not in told] == []


def test_less_memory_lowers_rows_then_layers(job: Callable[..., Settings], console: Console, said: io.StringIO) -> None:
    large = job("train.batch_size=64", "image_size=560")
    plan(large, console=console)
    lines = [line for line in said.getvalue().splitlines() if " GiB " in line and "memory" not in line]
    assert "train.max_tokens_per_microbatch=" in lines[0]
    assert lines[-1].endswith("or more fit it as it is")


def test_the_gpus_of_the_command_line(cli) -> None:
    for name in GPU_TFLOPS:
        assert name in " ".join(cli("plan", "--help").out.split())
