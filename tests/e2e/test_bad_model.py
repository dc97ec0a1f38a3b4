"""Models, adapters, runs and places that are broken: one message, status 1 or 2, nothing overwritten, nothing left."""

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.report import run_log
from lorgnette.training.checkpoint import load_checkpoint

Change = Callable[[Path], object]


def cut(name: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / name, size)


def gone(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def edited(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def no_template(folder: Path) -> None:
    (folder / "chat_template.json").unlink()
    edited("tokenizer_config.json", chat_template=None)(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no such model"),
        (gone("config.json"), "config.json is missing"),
        (text("config.json", "{"), "config.json cannot be read"),
        (edited("config.json", model_type="llama"), "model_type 'llama' is not supported"),
        (edited("config.json", model_type=["x"]), "is not supported"),
        (edited("config.json", num_hidden_layers=3), "weights do not fit the model: 12 missing"),
        (edited("config.json", intermediate_size=128), "of another shape"),
        (edited("config.json", hidden_size=128), "mrope_section [2, 3, 3] with a head width of 32"),
        (edited("config.json", vocab_size="x"), "config.json cannot be used: vocab_size is 'x'"),
        (gone("model.safetensors"), "model.safetensors is missing"),
        (cut("model.safetensors", 20000), "weights cannot be loaded"),
        (cut("model.safetensors", 0), "weights cannot be loaded"),
        (text("model.safetensors", "version https://git-lfs.github.com/spec/v1\n" * 3), "weights cannot be loaded"),
        (gone("vocab.json"), "tokenizer is missing"),
        (text("vocab.json", "{"), "tokenizer cannot be read"),
        (edited("tokenizer_config.json", added_tokens_decoder={}), "tokenizer has no <|image_pad|>"),
        (gone("preprocessor_config.json"), "preprocessor_config.json is missing"),
        (edited("preprocessor_config.json", patch_size=0), "preprocessor_config.json cannot be read"),
        (no_template, "no chat template"),
        (text("chat_template.json", "{"), "chat_template.json cannot be read"),
        (text("chat_template.json", '{"chat_template": "{% for"}'), "chat template cannot be read"),
    ],
)
def test_a_broken_model(change: Change, message: str, tmp_path: Path, tiny: Path, captions, cli, quick) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    change(tmp_path / "model")
    for words in (quick(model="model"), ["predict", "0.png", "--model", "model"]):
        cli(*words).assert_refused(2 if change is shutil.rmtree else 1, message, "model")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves a copy of its run for the others."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained(kept: Path, tmp_path: Path, captions, cli, quick) -> Path:
    """A run that has ended."""
    if kept.exists():
        return shutil.copytree(kept, tmp_path / "run")
    assert cli(*quick()).status == 0
    shutil.copytree(tmp_path / "run", kept)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no such adapter"),
        (text("lorgnette.json", "{"), "lorgnette.json"),
        (edited("lorgnette.json", processor={"image_size": "big"}), "lorgnette.json"),
        (edited("lorgnette.json", model="/gone"), "the adapter's base model is missing"),
        (edited("lorgnette.json", fingerprint="0"), "other weights than the adapter was trained on"),
        (edited("lorgnette.json", chat_template="x"), "another chat template"),
        (gone("adapter_model.safetensors"), "adapter_model.safetensors is missing"),
        (cut("adapter_model.safetensors", 500), "adapter_model.safetensors is truncated"),
        (cut("adapter_model.safetensors", 0), "adapter_model.safetensors is empty"),
        (text("adapter_config.json", "{}"), "adapter_config.json"),
        (edited("adapter_config.json", r=4), "has rank 4, the tensors have rank 2: files of two adapters"),
        (edited("adapter_config.json", target_modules=["q_proj"]), "4 of 4 adapter tensors match the model"),
    ],
)
def test_a_broken_adapter(change: Change, message: str, trained: Path, cli) -> None:
    change(trained / "adapter")
    status = 2 if change is shutil.rmtree else 1
    cli("predict", "0.png", "--adapter", "run/adapter").assert_refused(status, message)
    cli("compare", "run/adapter", "captions.csv").assert_refused(status, message)
    assert not Path("compare.html").exists()


def test_a_base_model_that_does_not_match(trained: Path, cli) -> None:
    cli("predict", "0.png", "--adapter", "run/adapter", "--model", "demo").assert_refused(1, "other weights", "--model")
    assert cli("predict", "0.png", "--adapter", "run", "--max-new-tokens", 1).status == 0  # the adapter in it
    (trained / "adapter").rename(trained.parent / "gone")
    message, hint = "a run, not an adapter", "it has no adapter yet: lorgnette train --resume run"
    cli("predict", "0.png", "--adapter", "run").assert_refused(2, message, hint)


def test_what_to_answer_is_looked_at_before_weights_are_read(
    tmp_path: Path, tiny: Path, captions, cli, monkeypatch
) -> None:
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / "mixed").mkdir()
    shutil.copy(tmp_path / "0.png", tmp_path / "mixed" / "a.png")
    (tmp_path / "mixed" / "b.png").touch()
    with (tmp_path / "broken.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "caption"), ("0.png", "x"), ("gone.png", "x"), ("1.png", "")])
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    for source, *messages in (
        ("empty", "no image in this folder"),
        ("notes.txt", "no rows"),
        ("nowhere", "does not exist"),
        ("mixed", "1 of 2 rows", "b.png", "zero bytes"),
        ("broken.csv", "2 of 3 rows", "row 3: image is missing", "row 4: the caption is empty"),
        ("none.csv", "no rows"),
    ):
        cli("predict", source, "--model", tiny).assert_refused(1, source, *messages)
    cli("predict", "0.png", "--both", "--model", tiny).assert_refused(2, "--both needs an adapter", "--adapter")
    before = captions.read_bytes()
    for out, status, what in (
        ("captions.csv", 2, "would overwrite its own input"),
        ("mixed", 2, "a folder, not a file"),
        ("captions.csv/x", 1, "cannot write"),
        ("/proc/nowhere/x", 1, "cannot write"),
    ):
        cli("predict", "captions.csv", "--model", tiny, "--out", out).assert_refused(status, what, f"--out {out}")
    assert captions.read_bytes() == before


def test_compare_looks_at_its_place_first(trained: Path, captions: Path, cli, monkeypatch) -> None:
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", lambda *_: pytest.fail("weights were read"))
    for out, status in (("captions.csv", 2), ("run", 2), ("captions.csv/x.html", 1), ("/proc/nowhere/x.html", 1)):
        cli("compare", "run/adapter", "captions.csv", "--out", out).assert_refused(status, f"--out {out}")
    assert captions.read_text().startswith("image_path")


@pytest.mark.parametrize(
    "words", [["--temperature", "nan"], ["--top-p", "nan"], ["--seed", "9" * 30], ["--batch-size", "0"], ["--nope"]]
)
def test_options(words: list[str], tiny: Path, captions, cli) -> None:
    result = cli("predict", "0.png", "--model", tiny, *words)
    assert result.status == 2
    assert words[0].lstrip("-") in result.err


def test_a_file_name_that_is_no_text(tmp_path: Path, tiny: Path, captions, cli) -> None:
    (tmp_path / "odd").mkdir()
    try:
        shutil.copy(tmp_path / "0.png", os.fsencode(tmp_path / "odd") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system keeps no such name")
    result = cli("predict", "odd", "--model", tiny, "--max-new-tokens", 2, "--out", "answers.jsonl")
    assert result.status == 0, result.err
    assert result.out.startswith("\\udcff.png")
    assert json.loads((tmp_path / "answers.jsonl").read_text())["id"] == "\udcff.png"


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (shutil.rmtree, 2, "no such run"),
        (gone("config.yaml"), 1, "config.yaml is missing"),
        (text("config.yaml", "a: ["), 2, "config.yaml"),
        (text("config.yaml", "data: {path: captions.csv, prefix: x}"), 2, "unknown setting data.prefix"),
        (gone("manifest.json"), 1, "manifest cannot be read"),
        (text("manifest.json", "[]"), 1, "manifest cannot be read"),
        (text("log.jsonl", "no record\n{}\n"), 1, "log.jsonl, line 1"),
        (cut("checkpoints/step-000002/state.pt", 100), 1, "checkpoint cannot be read"),
        (text("checkpoints/step-000002/state.pt", "no checkpoint " * 50), 1, "checkpoint cannot be read"),
        (cut("checkpoints/step-000002/adapter_model.safetensors", 100), 1, "adapter_model.safetensors is truncated"),
    ],
)
def test_a_broken_run(change: Change, status: int, message: str, trained: Path, cli) -> None:
    change(trained)
    before = sorted(path for path in trained.rglob("*") if path.is_file())
    cli("train", "--resume", "run").assert_refused(status, message)
    assert sorted(path for path in trained.rglob("*") if path.is_file()) == before


def test_a_resumed_run_keeps_its_settings(trained: Path, cli) -> None:
    for words in (["train.learning_rate=1"], ["demo"]):
        result = cli("train", *words, "--resume", "run")
        assert result.status == 2
        assert "a resumed run keeps its settings" in result.err
    assert cli("train", "--resume", "run").status == 0  # all result already: the page is written again
    (trained / "log.jsonl").unlink()
    assert cli("train", "--resume", "run").status == 0


@pytest.mark.parametrize("at", ["step-000001", "step-000002", "adapter", "predictions.jsonl", "report.html"])
def test_a_disk_that_is_full_at_the_last_moment(at: str, tmp_path, captions, cli, quick, monkeypatch) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        cli(*quick()).assert_refused(1, "No space left on device", at, "free some space")
    assert not (tmp_path / "run" / at).exists()
    assert not list((tmp_path / "run").rglob("*.part"))
    result = cli("train", "--resume", "run")
    assert result.status == 0, result.err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("size", ["size=8k", "size=60k", "size=130k", "size=200k"])
def test_a_disk_that_fills(size: str, captions, cli, quick, volume) -> None:
    """Wherever the disk fills, every file there is complete; with more space the run resumes to its end. A run that has
    written nothing yet begins again with the same command."""
    run = volume(size) / "run"
    cli(*quick(run=run)).assert_refused(1, "No space left on device", str(run))
    assert not list(run.rglob("*.part"))
    for adapter in (run / "adapter", run / "best"):  # the last adapter is there before the last checkpoint is
        assert not adapter.exists() or SavedAdapter.load(adapter)
    for folder in run.glob("checkpoints/*"):
        assert load_checkpoint(folder, torch.device("cpu"))
    volume("size=4m")
    result = cli("train", "--resume", run) if (run / "manifest.json").exists() else cli(*quick(run=run))
    assert result.status == 0, result.err
    assert [record["step"] for record in run_log.read_log(run / "log.jsonl") if record["kind"] == "train"] == [1, 2]


def test_a_folder_that_may_only_be_read(tmp_path: Path, tiny: Path, captions, cli, quick, volume) -> None:
    folder_on_volume = volume("ro,size=1m")
    cli(*quick(run=folder_on_volume / "run")).assert_refused(1, "run folder cannot be created")
    cli("prepare", "captions.csv", "--out", folder_on_volume / "data").assert_refused(1, "cannot write")
    cli("predict", "0.png", "--model", tiny, "--out", folder_on_volume / "answers.jsonl").assert_refused(
        1, "cannot write"
    )
    cli("recipe", "copy", "demo", folder_on_volume / "demo.yaml").assert_refused(1, "cannot write")
    cli("demo", "--out", folder_on_volume / "demo", "--images", 8).assert_refused(1, "Read-only")
    assert not list(folder_on_volume.iterdir())
