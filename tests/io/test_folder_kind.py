"""A folder of the wrong kind is called what it is, with the words to type."""

import shlex
from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.folder_kind import explain_folder, find_folder_kind, format_resume_command, is_taught

FILES = {
    "empty": (),
    "model": ("config.json", "model.safetensors", "generation_config.json"),
    "pickled model": ("config.json", "pytorch_model.bin"),
    "adapter": ("adapter_config.json", "adapter_model.safetensors", "lorgnette.json"),
    "pickled adapter": ("adapter_config.json", "adapter_model.bin"),
    "run": ("config.yaml", "manifest.json", "report.html"),
    "data": ("metadata.csv", "0.png"),
    "other": ("notes.txt",),
}
"""Kind → the files of such a folder."""


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A folder of every kind, with a name that a shell would split."""
    made = {}
    for kind, names in FILES.items():
        made[kind] = tmp_path / f"my {kind}"
        made[kind].mkdir()
        for name in names:
            (made[kind] / name).touch()
    return made


def test_every_kind_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {kind: find_folder_kind(folder) for kind, folder in folders.items()} == {kind: kind for kind in FILES}
    assert find_folder_kind(tmp_path / "none") == "missing"
    assert find_folder_kind(folders["data"] / "0.png") == "file"


def test_kinds_that_look_like_two(folders: dict[str, Path]) -> None:
    """A merged model has lorgnette.json; some adapters come with their base's config.json."""
    (folders["model"] / "lorgnette.json").touch()
    (folders["adapter"] / "config.json").touch()
    (folders["model"] / "config.yaml").touch()
    assert find_folder_kind(folders["model"]) == "model"
    assert find_folder_kind(folders["adapter"]) == "adapter"
    (folders["model"] / "model.safetensors").unlink()
    assert find_folder_kind(folders["model"]) == "model"  # whole or not
    (folders["model"] / "config.json").unlink()
    (folders["model"] / "model-00001-of-00002.safetensors").touch()
    assert find_folder_kind(folders["model"]) == "model"


@pytest.mark.parametrize(
    ("wanted", "kind", "message", "hint"),
    [
        ("model", "adapter", "an adapter, not a model", "lorgnette predict IMAGE --adapter {}; as one model: "),
        ("model", "run", "a run, not a model", "lorgnette predict IMAGE --adapter {}"),
        ("model", "data", "a folder of data, not a model", "data={}"),
        ("model", "empty", "an empty folder, not a model", "OWNER/NAME"),
        ("model", "pickled model", "a model with weights in pickles (.bin) alone", "save_pretrained("),
        ("adapter", "model", "a model, not an adapter", "lorgnette predict IMAGE --model {}"),
        ("adapter", "run", "a run, not an adapter", "it has no adapter yet: lorgnette train --resume {}"),
        ("adapter", "pickled adapter", "an adapter with weights in a pickle (.bin) alone", "PeftModel."),
        ("adapter", "data", "a folder of data, not an adapter", "name a run, or its `adapter` folder"),
        ("run", "model", "a model, not a run", "lorgnette train"),
        ("run", "other", "a folder of something else, not a run", "lorgnette train"),
    ],
)  # fmt: skip
def test_what_it_is_and_what_to_type(folders: dict[str, Path], wanted, kind: str, message: str, hint: str) -> None:
    error = explain_folder(folders[kind], wanted)
    assert isinstance(error, UsageError)
    assert (error.message, error.where) == (message, str(folders[kind]))
    assert hint.format(shlex.quote(str(folders[kind]))) in str(error.hint)


def test_a_missing_folder_gets_its_neighbor(folders: dict[str, Path], tmp_path: Path) -> None:
    assert str(explain_folder(tmp_path / "my adaptr", "adapter")) == (
        f"no such adapter · {tmp_path / 'my adaptr'} · did you mean {folders['adapter']}?"
    )
    assert "name a run" in str(explain_folder(tmp_path / "elsewhere" / "x", "adapter"))


def test_a_folder_of_them_names_one(folders: dict[str, Path], tmp_path: Path) -> None:
    """The folder of all runs, a hub's cache, the adapter in a run."""
    assert f"did you mean {folders['run']}?" in str(explain_folder(tmp_path, "run"))
    snapshot = tmp_path / "models--Qwen--Q" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (snapshot / "model.safetensors").touch()
    assert f"did you mean {snapshot}?" in str(explain_folder(tmp_path / "models--Qwen--Q", "model"))
    (folders["adapter"]).rename(folders["run"] / "adapter")
    assert f"did you mean {folders['run']}?" in str(explain_folder(folders["run"] / "adapter", "run"))


def test_a_run_without_its_settings_is_still_one(folders: dict[str, Path]) -> None:
    (folders["run"] / "config.yaml").unlink()
    (folders["run"] / "log.jsonl").touch()
    assert explain_folder(folders["run"], "run", lacks="config.yaml").message == "config.yaml is missing"
    folders["adapter"].rename(folders["run"] / "adapter")
    error = explain_folder(folders["run"], "adapter")
    assert (error.message, error.hint) == ("a run, not an adapter", f"did you mean {folders['run'] / 'adapter'}?")


def test_a_run_of_teach_is_a_run_that_goes_on_in_its_own_way(tmp_path: Path) -> None:
    for name in ("config.yaml", "journal.jsonl"):
        (tmp_path / name).touch()
    assert (find_folder_kind(tmp_path), is_taught(tmp_path)) == ("run", True)
    hint = explain_folder(tmp_path, "adapter").hint
    assert hint == f"it has no adapter yet: lorgnette teach --run {tmp_path}"
    (tmp_path / "journal.jsonl").rename(tmp_path / "log.jsonl")
    assert format_resume_command(tmp_path) == f"lorgnette train --resume {tmp_path}"


def test_a_broken_folder_of_the_right_kind_says_what_is_missing(folders: dict[str, Path]) -> None:
    error = explain_folder(folders["adapter"], "adapter", lacks="adapter_model.safetensors")
    assert type(error) is LorgnetteError
    assert error.message == "adapter_model.safetensors is missing"
    assert error.hint == "copy the adapter's folder again, whole"
