"""Every recipe of the package is found, loaded and copied."""

from pathlib import Path

import pytest

from lorgnette import recipes
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.metrics.registry import expand_metric_names

TAUGHT = ("teach", "teach-demo")
NAMES = [name for name, _ in recipes.list_titles()]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_has_a_title_and_loads(name: str) -> None:
    title = dict(recipes.list_titles())[name]
    assert len(title) > 10
    assert not title.startswith("#")
    assert recipes.load_settings(name).data.path or name in ("default", *TAUGHT)


def test_the_default_recipe_is_what_happens_without_one() -> None:
    assert recipes.load_settings("default") == recipes.load_settings() == Settings()


def test_the_tutorials_recipes_and_the_demo_keep_their_own_values() -> None:
    for name in set(NAMES) - {"default", *TAUGHT}:
        settings = recipes.load_settings(name)
        train = settings.train
        assert train.epochs == 2
        assert train.logging_steps == 10
        assert settings.data.holdout in (4, 20, 64)
        assert settings.data.prompt in ("COCO Yes:", "Write this formula in LaTeX.")
    tutorial = recipes.load_settings("coco-caption")
    assert (tutorial.lora.rank, tutorial.lora.alpha, tutorial.lora.dropout, len(tutorial.lora.target_modules)) == (
        64, 16, 0.05, 7,
    )  # fmt: skip
    assert (tutorial.image_size, tutorial.train.learning_rate, tutorial.train.lr_scheduler_type) == (
        (280, 280), 1e-4, "linear",
    )  # fmt: skip


def test_teach_chooses_its_steps() -> None:
    for name, rate in (("teach", 2e-4), ("teach-demo", 2e-3)):
        settings = recipes.load_settings(name)
        train, lora = settings.train, settings.lora
        assert (train.epochs, train.batch_size, train.learning_rate) == ("auto", 8, rate)
        assert (lora.rank, lora.alpha, lora.dropout) == (16, 32, 0.05)
        assert settings.image_size == ((112, 112) if name == "teach-demo" else (280, 280))
        assert "lora" not in settings.model_fields_set  # an adapter to go on from has its own
        assert expand_metric_names(settings.predict.metrics) == ()


def test_only_the_literal_recipe_learns_the_blanks_around_captions() -> None:
    assert {name for name in NAMES if not recipes.load_settings(name).data.trim} == {"coco-caption-literal"}


def test_values_and_overrides_replace_single_settings() -> None:
    settings = recipes.load_settings("demo")
    changed = recipes.load_settings(
        "demo", ["lora.rank=8"], data="mine.csv", train={"learning_rate": 0.5}, model="elsewhere"
    )
    assert (changed.model, changed.data.path, changed.lora.rank) == ("elsewhere", Path("mine.csv"), 8)
    assert changed.data.holdout == settings.data.holdout != recipes.load_settings().data.holdout
    assert changed.train == settings.train.model_copy(update={"learning_rate": 0.5})
    assert changed.lora == settings.lora.model_copy(update={"rank": 8})


def test_error_names_the_origin_of_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# Mine\ntrain: {learning_rate: fast}")
    with pytest.raises(UsageError, match=r"train\.learning_rate = 'fast'.*mine\.yaml"):
        recipes.load_settings(str(path))
    with pytest.raises(UsageError, match=r"train\.learning_rate = 'slow'.*arguments"):
        recipes.load_settings(str(path), train={"learning_rate": "slow"})
    with pytest.raises(UsageError, match=r"train\.learning_rate = '-1'.*command line"):
        recipes.load_settings(str(path), ["train.learning_rate=-1"])


def test_recipe_is_found_by_name_or_file(tmp_path: Path) -> None:
    assert recipes.find_recipe("demo").name == "demo.yaml"
    copy = recipes.copy_recipe("demo", tmp_path / "new" / "mine.yaml")
    assert recipes.find_recipe(str(copy)) == copy
    assert recipes.load_settings(str(copy)) == recipes.load_settings("demo")


@pytest.mark.parametrize(("name", "hint"), [("coco-captoin", "coco-caption"), ("zzzz", "recipe list")])
def test_unknown_recipe_is_refused_with_a_similar_name(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipes.find_recipe(name)
    assert (caught.value.message, caught.value.where) == ("no such recipe", name)
    assert hint in str(caught.value.hint)


def test_copy_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes.copy_recipe("demo", None) == Path("demo.yaml")
    Path("demo.yaml").write_text("# Mine\n")
    with pytest.raises(UsageError, match=r"file exists .*demo\.yaml .*name another"):
        recipes.copy_recipe("demo", None)
    assert Path("demo.yaml").read_text() == "# Mine\n"
