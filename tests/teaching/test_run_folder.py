"""The folder of a `teach` run: which one goes on, which settings stay, and what `train` reads there."""

import io
import json
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from lorgnette import config, recipes
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import hash_image
from lorgnette.report.run_dir import RunDir
from lorgnette.report.training_overlap import find_training_overlap
from lorgnette.teaching.events import Opened
from lorgnette.teaching.images import ImageList, read_images
from lorgnette.teaching.run_folder import (
    TeachRun,
    build_train_settings,
    check_settings,
    find_run,
    merge_settings,
    open_run,
    write_config,
    write_manifest,
)

MODEL = ["model=demo"]


def load(*words: str, recipe: str = "teach") -> Settings:
    return recipes.load_settings(recipe, [*MODEL, *words])


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageList:
    """Two images in photos, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        PIL.Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    return read_images(Path("photos"), "What?")


def begin(path: Path, images: ImageList, settings: Settings | None = None) -> TeachRun:
    """A run as `teach` leaves it before the first answer."""
    run_dir = RunDir.create_folder(path)
    write_config(run_dir, build_train_settings(settings or load(), run_dir, images))
    opened = Opened(
        t=1.0,
        folder=str(images.source),
        model="demo",
        prompt="What?",
        seed=0,
        num_images=2,
        labels=["a", "b"],
        version="",
    )
    run_dir.journal.write_text(opened.to_json() + "\n")
    return open_run(path)


def test_the_same_images_go_on_with_the_same_run(images: ImageList, tmp_path: Path) -> None:
    def find(source: str) -> TeachRun:
        return find_run("teach-photos", lambda folder: Path(source))

    new = find("photos")
    assert (new.run_dir.path, new.settings) == (Path("runs/teach-photos"), None)
    begin(new.run_dir.path, images)
    found = find("photos")
    assert (found.run_dir.path, found.source) == (Path("runs/teach-photos"), tmp_path / "photos")
    assert found.opened is not None
    assert found.opened.labels == ["a", "b"]
    assert find(str(tmp_path / "photos")).run_dir == found.run_dir
    # Another folder of this name, and a folder of something else.
    assert find("other/photos").run_dir.path == Path("runs/teach-photos-2")
    Path("runs/teach-photos-2").mkdir()
    Path("runs/teach-photos-2/notes.txt").touch()
    assert find("other/photos").run_dir.path == Path("runs/teach-photos-3")


@pytest.mark.parametrize("names", [(), (".lock",), ("config.yaml",), ("config.yaml", "journal.jsonl"), ("images",)])
def test_a_run_that_was_stopped_before_its_page_opened_is_new(names: tuple[str, ...], images: ImageList) -> None:
    """Its settings are those of the next command."""
    run_dir = RunDir.create_folder(Path("runs/a"))
    for name in names:
        (run_dir.path / name).touch()
    run = open_run(run_dir.path)
    assert (run.settings, run.source) == (None, None)
    assert find_run("a", lambda folder: Path("photos")).run_dir.path == Path("runs/a")


def test_other_folders_are_refused(images: ImageList) -> None:
    trained = RunDir.create_folder(Path("runs/trained"))
    for name in ("config.yaml", "log.jsonl"):
        (trained.path / name).touch()
    with pytest.raises(UsageError, match=r"a run of `train`, not of `teach` .* adapter=runs/trained"):
        open_run(trained.path)
    with pytest.raises(UsageError, match="not a run, and not empty"):
        open_run(Path("photos"))


def test_settings_stay_those_of_the_run(images: ImageList) -> None:
    run = begin(Path("runs/a"), images, load("data.prompt=What?", "lora.rank=4"))
    kept = merge_settings(run, load())
    assert (kept.lora.rank, kept.data.prompt, kept.model) == (4, "What?", "demo")
    assert merge_settings(run, load("lora.rank=4", "data.prompt=What?", "data=photos", "run=runs/a")) == kept
    # What a recipe of ours says is no wish of the user; what a machine needs may change.
    assert merge_settings(run, load(recipe="teach-demo")) == kept
    changed = merge_settings(run, load("device=cpu", "predict.batch_size=2"))
    assert (changed.device, changed.predict.batch_size, changed.lora.rank) == ("cpu", 2, 4)
    with pytest.raises(UsageError) as caught:
        merge_settings(run, load("data.prompt=Who?", "lora.rank=8", "device=cpu"))
    assert caught.value.message == (
        "this run was started with other settings: data.prompt is What?, not Who?, lora.rank is 4, not 8"
    )
    assert caught.value.hint == "leave them out to go on, or begin another run: --run runs/a-2"


def test_settings_without_a_meaning_are_refused_and_a_recipes_are_named(tmp_path: Path) -> None:
    terminal = Terminal(Console(file=(output := io.StringIO()), width=200))
    for word in ("data.holdout=4", "train.eval_steps=2", "report_to=wandb"):
        with pytest.raises(UsageError, match=f"`teach` does not use {word.partition('=')[0]}"):
            check_settings(load(word), terminal)
    check_settings(load(), terminal)
    check_settings(Settings(), terminal)
    assert output.getvalue() == ""
    (tmp_path / "mine.yaml").write_text("# Mine\ntrain: {eval_steps: 2, learning_rate: 1.0e-4}\n")
    check_settings(load(recipe=str(tmp_path / "mine.yaml")), terminal)
    assert output.getvalue() == "setting    not used by `teach`: train.eval_steps\n"


def test_the_config_is_that_of_a_training_on_the_answers(images: ImageList, tmp_path: Path) -> None:
    run = begin(Path("runs/a"), images, load("lora.rank=4", "data.prompt=Other?"))
    settings = config.load_settings(config.read_recipe(run.run_dir.config))
    data = settings.data
    assert (data.path, data.images_from) == (tmp_path / "runs/a/captions.csv", str(tmp_path / "photos"))
    assert (data.holdout, data.prompt, data.test, settings.lora.rank) == (0, "What?", None, 4)
    assert settings.run == tmp_path / "runs/a"


def test_the_manifest_says_which_images_were_trained_on(images: ImageList, tmp_path: Path) -> None:
    run_dir = RunDir.create_folder(tmp_path / "run")
    write_manifest(run_dir, load(), images, ["1.png", "gone.png"])
    manifest = json.loads(run_dir.manifest.read_text())
    assert list(manifest["images"].values()) == [hash_image(images.paths[1])]
    overlap = find_training_overlap("run", run_dir.manifest, [[images.paths[0]], [images.paths[1]]])
    assert overlap.flags == (False, True)
