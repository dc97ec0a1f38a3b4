"""A training that continues an adapter: its settings, its contract, its first values and what is said of it."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lorgnette import config
from lorgnette.commands.check import check
from lorgnette.commands.plan import plan
from lorgnette.commands.train import resume, train
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata
from lorgnette.lora.peft_config import CONFIG_FILE
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import read_predictions
from lorgnette.report.run_dir import RunDir
from lorgnette.report.training_overlap import read_trained_images
from lorgnette.training.initial_adapter import build_manifest_entry, describe_seen_images, inherit_settings
from lorgnette.verification.judgement import judge_adapter

Chosen = Callable[..., Settings]
NO_STEP = ("train.learning_rate=1e-30", "train.logging_steps=1")
"""Steps that change no float32 value."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a copy of its run for the others."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def old_run(kept: Path, make_settings: Chosen, tmp_path: Path) -> Path:
    """A run of rank 2 that has changed the answers."""
    if kept.exists():
        return shutil.copytree(kept, tmp_path / "old")
    words = (f"run={tmp_path / 'old'}", "train.learning_rate=1e-1", "data.prompt=Say:", "lora.alpha=16", "device=cpu")
    shutil.copytree(train(make_settings(*words)).path, kept)
    return tmp_path / "old"


def train_in(settings: Settings) -> RunDir:
    return RunDir(train(settings).path)


def load_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / WEIGHTS_FILE)


def name_new_run(captions: Path, *words: str) -> Settings:
    """The settings of a run as a user names them: the data, the adapter, and little else."""
    few = (f"data={captions}", f"run={captions.parent / 'new'}", "data.holdout=2", "report_to=none", "device=cpu")
    return config.load_settings(None, [*few, "train.max_steps=2", "train.batch_size=2", *words])


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_run_continues_an_adapter(
    engine: str, old_run: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no learned step it is the old adapter, bit for bit; its answers before training are the old adapter's."""
    capsys.readouterr()
    run = train_in(name_new_run(captions, f"adapter={old_run}", f"engine={engine}", *NO_STEP))
    printed = capsys.readouterr()
    assert "adapter    continues " in printed.err
    for taken in ("data.prompt=Say:", "image_size=28,28", "lora.rank=2", "predict.max_new_tokens=2"):
        assert taken in printed.err
    old, new = load_weights(old_run), load_weights(run.path)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)

    # What is recorded.
    metadata = AdapterMetadata.load(run.adapter)
    assert metadata.origin is not None
    assert str(metadata.origin) == f"{tmp_path.name}/old, step 2"
    assert (metadata.step, metadata.prompt) == (2, "Say:")
    settings = config.load_settings(config.read_recipe(run.config))
    assert settings.adapter == (old_run / "adapter").resolve()
    assert read_trained_images(run.manifest) == read_trained_images(old_run / "manifest.json")
    assert judge_adapter(None, run.path, Terminal()).failures == []

    # Before and after are the old adapter's answers; the eval loss begins where the old run ended.
    rows, old_rows = read_predictions(run.predictions), read_predictions(old_run / "predictions.jsonl")
    assert [(row.base, row.tuned) for row in rows] == [(row.tuned, row.tuned) for row in old_rows]
    assert [row.base for row in old_rows] != [row.tuned for row in old_rows], "negative control"
    assert {row.before for row in rows} == {str(metadata.origin)}
    losses = [
        [record["eval_loss"] for record in run_log.read_log(folder / "log.jsonl") if "eval_loss" in record]
        for folder in (old_run, run.path)
    ]
    assert losses[1][0] == pytest.approx(losses[0][-1], rel=1e-5)
    assert f"This run continues {metadata.origin}: before is the base model with that adapter." in printed.out
    page = run.report.read_text(encoding="utf-8")
    assert f"This run continues {metadata.origin}" in page
    assert f'<span class="step">{metadata.origin}</span>' in page

    # A stopped run goes on only with the same adapter.
    shutil.rmtree(run.checkpoints)
    weights = old_run / "adapter" / WEIGHTS_FILE
    save_file({name: tensor * 2 for name, tensor in old.items()}, weights, {"format": "pt"})
    with pytest.raises(LorgnetteError, match=rf"inputs have changed since the run was started · .*{WEIGHTS_FILE}"):
        resume(run.path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fast_engine_on_a_gpu(old_run: Path, captions: Path) -> None:
    """In bfloat16 with captured graphs: no learned step keeps every bit, and the answers before are the old ones.

    The answers of both runs are generated on the device, where the old run's adapter answers after its training.
    """
    first = train_in(name_new_run(captions, f"adapter={old_run}", "device=cuda", "engine=fast", *NO_STEP))
    words = (f"adapter={first.path}", f"run={captions.parent / 'second'}", "device=cuda", "engine=fast")
    second = train_in(name_new_run(captions, *words, "train.learning_rate=1e-1"))
    old, new, learned = load_weights(old_run), load_weights(first.path), load_weights(second.path)
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert not any(torch.equal(old[name], learned[name]) for name in old)
    rows, rows_after = read_predictions(first.predictions), read_predictions(second.predictions)
    assert [row.base for row in rows] == [row.tuned for row in rows]
    assert [row.base for row in rows_after] == [row.tuned for row in rows]
    assert [row.tuned for row in rows_after] != [row.base for row in rows_after]
    samples = [record for record in run_log.read_log(second.log) if record["kind"] == "samples"]
    assert samples[0]["answers"] == [row.tuned for row in rows], "the steps began with the old adapter"


def test_trained_weights_return_after_the_answers_before(old_run: Path, captions: Path) -> None:
    """The answers before training are generated after it, with the old factors in their place."""
    words = (f"adapter={old_run}", "engine=reference", "train.learning_rate=1e-1", "train.save_steps=1")
    run = train_in(name_new_run(captions, *words))
    old_rows, rows = read_predictions(old_run / "predictions.jsonl"), read_predictions(run.predictions)
    assert [row.base for row in rows] == [row.tuned for row in old_rows]
    assert [row.tuned for row in rows] != [row.base for row in rows]

    # Killed after its first step, it ends with the same adapter and answers: a checkpoint comes before the old adapter.
    weights = load_weights(run.path)
    for folder in (run.adapter, run.checkpoints / "step-000002"):
        shutil.rmtree(folder)
    resume(run.path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_weights(run.path).items())
    assert read_predictions(run.predictions) == rows


def test_held_out_images_of_the_old_training_are_named(
    old_run: Path, captions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last two rows were held out; with other rows at the end, they were not."""
    lines = captions.read_text().splitlines()
    captions.write_text("\n".join([lines[0], *lines[3:], *lines[1:3]]) + "\n")
    run = train_in(name_new_run(captions, f"adapter={old_run}", *NO_STEP))
    printed = capsys.readouterr()
    assert "was trained on 2 of 2 held-out images, and their scores do not show how it does on new ones: red.png" in (
        printed.err
    )
    assert "this run was trained on the images of 2 of 2 questions" in printed.out
    assert "trained on</span>" in run.report.read_text(encoding="utf-8")
    (old_run / "manifest.json").unlink()
    unknown = describe_seen_images(build_manifest_entry(old_run / "adapter"), {captions.parent / "red.png": "0"})
    assert unknown is not None
    assert "may have been trained on held-out images: the manifest of its run is not here" in unknown


def test_check_and_plan_use_the_adapters_settings(
    old_run: Path, captions: Path, terminal: Terminal, terminal_output: io.StringIO
) -> None:
    settings = name_new_run(captions, f"adapter={old_run}", "lora.rank=4")
    for command in (lambda: check(captions, settings=settings), lambda: plan(settings), lambda: train(settings)):
        with pytest.raises(
            UsageError, match=r"lora.rank is 4, the adapter's is 2 · adapter=.*old · write lora.rank=2,"
        ):
            command()
    other = name_new_run(captions, f"adapter={old_run}", "model=demo")
    inherit_settings(other, terminal)
    assert "model is demo, the adapter was trained on /" in terminal_output.getvalue()
    for command in (lambda: check(captions, settings=other), lambda: plan(other), lambda: train(other)):
        message = "base model has other weights than the adapter was trained on .* leave out model="
        with pytest.raises(LorgnetteError, match=message):
            command()
    assert not (captions.parent / "new").exists()


def test_what_is_set_stays_and_what_differs_is_said(
    old_run: Path, captions: Path, terminal: Terminal, terminal_output: io.StringIO
) -> None:
    words = ("data.prompt=Now:", "image_size=56", "lora.dropout=0.3", "lora.alpha=16", "lora.parts=language")
    settings = inherit_settings(name_new_run(captions, f"adapter={old_run}", *words), terminal)
    assert (settings.data.prompt, settings.image_size) == ("Now:", (56, 56))
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.dropout) == (2, 16, 0.3)
    printed = terminal_output.getvalue()
    assert "data.prompt is Now:, the adapter was trained with Say:" in printed
    assert "image_size is 56,56, the adapter was trained with 28,28" in printed
    assert "from it: model=" in printed
    assert inherit_settings(settings, terminal) == settings
    without = name_new_run(captions)
    assert inherit_settings(without, terminal) is without


CONTRADICTIONS = {
    "lora.rank=3": "lora.rank is 3, the adapter's is 2",
    "lora.alpha=17": "lora.alpha is 17, the adapter's is 16",
    "lora.use_rslora=true": "lora.use_rslora is true, the adapter's is false",
    "lora.target_modules=q_proj": "lora.target_modules is q_proj, the adapter's is q_proj,k_proj,",
    "lora.parts=language,vision": "lora.parts is language,vision, the adapter's is language",
}


@pytest.mark.parametrize("word", CONTRADICTIONS)
def test_a_setting_that_contradicts_the_adapter_is_refused(
    word: str, old_run_files: Path, captions: Path, terminal: Terminal
) -> None:
    with pytest.raises(UsageError) as caught:
        inherit_settings(name_new_run(captions, f"adapter={old_run_files}", word), terminal)
    assert CONTRADICTIONS[word] in caught.value.message
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(f"write {word.partition('=')[0]}=")
    assert caught.value.hint.endswith(", or leave `adapter` out")


@pytest.fixture
def old_run_files(saved: Path, tmp_path: Path) -> Path:
    """An adapter's two files as `old_run` has them, without its training."""
    folder = shutil.copytree(saved, tmp_path / "files")
    content = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(content | {"r": 2, "lora_alpha": 16}))
    tensors = load_file(folder / WEIGHTS_FILE)
    cut = {name: (t[:2] if "lora_A" in name else t[:, :2]).contiguous() for name, t in tensors.items()}
    save_file(cut, folder / WEIGHTS_FILE, {"format": "pt"})
    return folder


def change_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


UNTRAINABLE: dict[str, Any] = {
    "use_dora": True, "bias": "all", "rank_pattern": {"q_proj": 2}, "modules_to_save": ["lm_head"],
    "init_lora_weights": "pissa", "layers_to_transform": [0], "lora_alpha": 1.5, "invented_option": 1,
}  # fmt: skip


@pytest.mark.parametrize("option", UNTRAINABLE)
def test_what_neither_engine_trains_is_refused_with_its_reason(
    option: str, old_run_files: Path, captions: Path, terminal: Terminal
) -> None:
    change_config(old_run_files, **{option: UNTRAINABLE[option]})
    with pytest.raises(LorgnetteError, match=f"the adapter cannot be trained further: its .*{option}.* · .* merge it"):
        inherit_settings(name_new_run(captions, f"adapter={old_run_files}"), terminal)


@pytest.mark.filterwarnings("ignore")  # PEFT's
def test_an_adapter_that_peft_made(
    load_tiny_model: Callable[[], Any], tiny: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain LoRA is trained further; in some layers only, it is not."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(load_tiny_model(), LoraConfig(**options, init_lora_weights=False))
    model.save_pretrained(tmp_path / "theirs")
    words = (f"model={tiny}", "image_size=28", "predict.max_new_tokens=2", *NO_STEP)
    run = train_in(name_new_run(captions, f"adapter={tmp_path / 'theirs'}", *words))
    old, new = load_file(tmp_path / "theirs" / WEIGHTS_FILE), load_weights(run.path)
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert f"has no {METADATA_FILE}: its prompt and image size are unknown, the settings' are used" in (
        capsys.readouterr().err
    )
    layer = "model.language_model.layers.0.self_attn.q_proj"
    some = get_peft_model(load_tiny_model(), LoraConfig(r=4, target_modules=[layer], init_lora_weights=False))
    some.save_pretrained(tmp_path / "some")
    with pytest.raises(LorgnetteError, match=r"it leaves out model.language_model.layers.1.self_attn.q_proj, and lora"):
        train(name_new_run(captions, f"adapter={tmp_path / 'some'}", f"run={tmp_path / 'no'}", *words))
    assert not (tmp_path / "no").exists()


def test_a_folder_that_is_no_adapter_is_called_what_it_is(
    tiny: Path, captions: Path, tmp_path: Path, terminal: Terminal
) -> None:
    for path, kind in ((tmp_path / "nowhere", "no such adapter"), (tiny, "a model, not an adapter")):
        with pytest.raises(UsageError, match=kind):
            inherit_settings(name_new_run(captions, f"adapter={path}"), terminal)
