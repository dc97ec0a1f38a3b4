"""The grammar of the command line as a table: which word is a recipe, data or a setting."""

import json
from pathlib import Path

import pytest

from lorgnette.errors import UsageError
from lorgnette.grammar import complete_recipes, complete_words, parse_teach_words, parse_words, rewrite, split_setting

TRAIN = {"--resume": True, "--help": False}
PREDICT = {
    "--adapter": True,
    "--model": True,
    "--prompt": True,
    "--both": False,
    "--max-new-tokens": True,
    "--seed": True,
}
EVALUATE = {"--model": True, "--rows": True, "--batch-size": True, "--images-from": True, "--metrics": True}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, recipes, a run, a model and an adapter."""
    monkeypatch.chdir(tmp_path)
    for name in ("captions.csv", "more.csv", "data.jsonl", "photo.jpg", "odd=name.csv"):
        (tmp_path / name).write_text("image_path,caption\n")
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "args.json").write_text('{"model": "x", "lora_rank": 8, "learning_rate": 1e-4, "strange": 1}')
    (tmp_path / "list.json").write_text('[{"image": "a.jpg", "caption": "x"}]')
    (tmp_path / "row.json").write_text('{"image": "a.jpg", "prompt": "what?", "seed": 1}')
    (tmp_path / "coco.json").write_text('{"images": [], "annotations": []}')
    for folder, names in {
        "run": ("config.yaml", "manifest.json", "log.jsonl"),
        "taught": ("config.yaml", "journal.jsonl"),
        "model": ("config.json", "model.safetensors"),
        "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "recipe", "data", "settings", "name"),
    [
        ("", None, None, "", "run"),
        ("captions.csv", None, "captions.csv", "data=captions.csv", "captions"),
        ("data=captions.csv", None, "captions.csv", "data=captions.csv", "captions"),
        ("dataset=captions.csv", None, "captions.csv", "dataset=captions.csv", "captions"),
        ("demo dataset=captions.csv", "demo", "captions.csv", "dataset=captions.csv", "demo"),
        ("data.path=captions.csv", None, "captions.csv", "data.path=captions.csv", "captions"),
        ("photos", None, "photos", "data=photos", "photos"),
        ("photos/", None, "photos/", "data=photos/", "photos"),
        ("data.jsonl", None, "data.jsonl", "data=data.jsonl", "data"),
        ("list.json", None, "list.json", "data=list.json", "list"),
        ("row.json", None, "row.json", "data=row.json", "row"),
        ("coco.json", None, "coco.json", "data=coco.json", "coco"),
        ("captions.csv more.csv", None, "captions.csv,more.csv", "data=captions.csv,more.csv", "captions"),
        ("captions.csv,more.csv", None, "captions.csv,more.csv", "data=captions.csv,more.csv", "captions"),
        ("odd=name.csv", None, "odd=name.csv", "data=odd=name.csv", "odd=name"),
        ("hf:me/cats:train", None, "hf:me/cats:train", "data=hf:me/cats:train", "cats"),
        ("modelscope:me/cats", None, "modelscope:me/cats", "data=modelscope:me/cats", "cats"),
        ("coco:photos", None, "coco:photos", "data=coco:photos", "photos"),
        ("coco-caption", "coco-caption", None, "", "coco-caption"),
        ("coco-caption captions.csv", "coco-caption", "captions.csv", "data=captions.csv", "coco-caption"),
        ("captions.csv coco-caption", "coco-caption", "captions.csv", "data=captions.csv", "coco-caption"),
        ("coco-caption data=captions.csv", "coco-caption", "captions.csv", "data=captions.csv", "coco-caption"),
        ("recipe=coco-caption captions.csv", "coco-caption", "captions.csv", "data=captions.csv", "coco-caption"),
        ("mine.yaml captions.csv seed=2", "mine.yaml", "captions.csv", "data=captions.csv seed=2", "mine"),
        ("seed=2 captions.csv lr=1e-4", None, "captions.csv", "data=captions.csv seed=2 lr=1e-4", "captions"),
        ("missing.csv", None, "missing.csv", "data=missing.csv", "missing"),  # whose reader says what is wrong
        ("args.json captions.csv", "args.json", "captions.csv", "data=captions.csv", "args"),
    ],
)
def test_words_of_a_command(
    here: Path, words: str, recipe: str | None, data: str | None, settings: str, name: str
) -> None:
    request = parse_words(words.split())
    assert (request.recipe, request.data, request.settings, request.name) == (recipe, data, settings.split(), name)


@pytest.mark.parametrize(
    ("words", "images", "run", "recipe", "settings"),
    [
        (["photos"], "photos", None, "teach", []),
        (["photos", "lora.rank=4"], "photos", None, "teach", ["lora.rank=4"]),
        (["dataset=photos", "seed=2"], "photos", None, "teach", ["seed=2"]),
        (["demo"], "demo", None, "teach-demo", []),
        (["teach-demo", "seed=2"], "demo", None, "teach-demo", ["seed=2"]),
        (["mine.yaml", "photos"], "photos", None, "mine.yaml", []),
        (["taught"], None, Path("taught"), "teach", []),
        (["photos", "taught"], "photos", Path("taught"), "teach", []),
        ([], None, None, "teach", []),
    ],
)
def test_words_of_teach(
    words: list[str], images: str | None, run: Path | None, recipe: str, settings: list[str], here: Path
) -> None:
    read = parse_teach_words(words)
    assert (read.images, read.run, read.request.recipe, read.request.settings) == (images, run, recipe, settings)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("coco-captoin", "no such recipe, file or folder", "did you mean coco-caption?"),
        ("mine.yml", "no such file or folder", "did you mean mine.yaml?"),
        ("photo", "no such recipe, file or folder", "did you mean photos?"),
        ("train.epochs", "a setting without a value", "write key=value, as in train.epochs=VALUE"),
        ("lr", "a setting without a value", "write key=value, as in lr=VALUE"),
        ("qwen2-vl-2b", "a model, not data", "write model=qwen2-vl-2b"),
        ("zzzz", "no such recipe, file or folder", "`lorgnette recipe list` lists them"),
        (
            "run",
            "a run, not data",
            "continue it: lorgnette train --resume run; or train its adapter on new data: adapter=run",
        ),
        (
            "taught",
            "a run, not data",
            "its answers are data: taught/captions.csv; go on with it: lorgnette teach --run taught",
        ),
        ("model", "a model, not data", "write model=model"),
        ("adapter", "an adapter, not data", "write adapter=adapter"),
        ("demo coco-caption", "two recipes", "name one"),
        ("captions.csv data=more.csv", "the data is named twice", "name it once"),
    ],
)
def test_a_wrong_word_names_what_is_probably_meant(here: Path, words: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_words(words.split())
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("captions.csv --epochs 3", "captions.csv epochs=3"),
        ("captions.csv --epochs=3", "captions.csv epochs=3"),
        ("--learning-rate 1e-4 captions.csv", "learning-rate=1e-4 captions.csv"),
        ("--per_device_train_batch_size 2 --bf16 --do_train", "per_device_train_batch_size=2 bf16=true do_train=true"),
        ("--max_steps -1 --bf16 seed=3", "max_steps=-1 bf16=true seed=3"),
        ("--no-trim captions.csv", "no-trim=captions.csv"),
        ("captions.csv --no-trim", "captions.csv trim=false"),
        ("--data captions.csv", "data=captions.csv"),
        ("--target_modules q_proj v_proj captions.csv", "target_modules=q_proj,v_proj captions.csv"),
        ("train.learning_rate= 1e-4 captions.csv", "train.learning_rate=1e-4 captions.csv"),
        ("captions.csv report_to= seed=1", "captions.csv report_to= seed=1"),
        ("--recipe coco-caption", "recipe=coco-caption"),
        ("--data.max_rows 9", "data.max_rows=9"),
        ("--resume runs/a", "--resume runs/a"),
        ("resume=runs/a", "--resume runs/a"),
        ("--resum runs/a", "--resum runs/a"),
        ("-- --epochs 3", "-- --epochs 3"),
        ("--zzz 3", "zzz=3"),
    ],
)
def test_options_of_a_command_with_settings(here: Path, typed: str, meant: str) -> None:
    assert rewrite(typed.split(), TRAIN, ["words"], "train") == meant.split()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("photo.jpg adapter=runs/a", "photo.jpg --adapter runs/a"),
        ("run photo.jpg", "--adapter run photo.jpg"),
        ("photo.jpg adapter", "photo.jpg --adapter adapter"),
        ("photo.jpg --adapter run", "photo.jpg --adapter run"),
        ("photo.jpg model=demo --both", "photo.jpg --model demo --both"),
        ("photo.jpg --max_new_tokens 5", "photo.jpg --max-new-tokens 5"),
        ("photo.jpg predict.max_new_tokens=5", "photo.jpg --max-new-tokens 5"),
        ("photo.jpg data.prompt=what?", "photo.jpg --prompt what?"),
        ("--adapter_name_or_path runs/a data=photo.jpg", "--adapter runs/a photo.jpg"),
        ("--prompt a=b photo.jpg", "--prompt a=b photo.jpg"),
        ("odd=name.csv", "odd=name.csv"),
        ("photo.jpg both=true", "photo.jpg --both"),
        ("photo.jpg both=false", "photo.jpg"),
        ("photo.jpg random_state=3", "photo.jpg --seed 3"),
    ],
)
def test_settings_of_a_command_with_options(here: Path, typed: str, meant: str) -> None:
    assert rewrite(typed.split(), PREDICT, ["source"], "predict") == meant.split()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data=more.csv runs/a", "runs/a more.csv"),
        ("more.csv adapter=runs/a", "runs/a more.csv"),
        ("runs/a --data more.csv --max-rows 5", "runs/a --rows 5 more.csv"),
        ("runs/a more.csv data.max_rows=5", "runs/a more.csv --rows 5"),
        ("runs/a more.csv --rows=5", "runs/a more.csv --rows=5"),
        ("runs/a more.csv data.images_from=photos", "runs/a more.csv --images-from photos"),
    ],
)
def test_data_and_adapter_have_their_place(here: Path, typed: str, meant: str) -> None:
    assert rewrite(typed.split(), EVALUATE, ["model_or_run", "source"], "evaluate") == meant.split()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("cats=runs/a dogs=runs/b", "cats=runs/a dogs=runs/b"),
        ("test=run", "test=run"),  # a setting of others
        ("2024=runs/a", "2024=runs/a"),
        ("runs/a model=demo", "runs/a --model demo"),
        ("cats=runs/a --max_new_tokens 5 port=80", "cats=runs/a --max-new-tokens 5 --port 80"),
        ("demo adapter=runs/a", "runs/a demo"),
        ("--adapter runs/a", "runs/a"),
    ],
)
def test_models_have_names(here: Path, typed: str, meant: str) -> None:
    options = {"--model": True, "--max-new-tokens": True, "--port": True}
    assert rewrite(typed.split(), options, ["named_models"], "serve") == meant.split()
    with pytest.raises(UsageError, match="`lorgnette serve` has no setting epochs · epochs=3"):
        rewrite(["run", "epochs=3"], options, ["named_models"], "serve")
    for words in ("--temperature 1", "--cats runs/a", "--cats=runs/a"):  # an option names no model
        with pytest.raises(UsageError, match="`lorgnette serve` has no setting"):
            rewrite(["run", *words.split()], options, ["named_models"], "serve")


def test_a_setting_that_a_command_lacks_is_refused_with_what_it_has(here: Path) -> None:
    with pytest.raises(UsageError) as caught:
        rewrite(["photo.jpg", "--learning-rate", "1"], PREDICT, ["source"], "predict")
    assert caught.value.message == "`lorgnette predict` has no setting learning-rate"
    assert "--adapter, --model" in str(caught.value.hint)


@pytest.mark.parametrize("word", ["a.csv", "hf:me/a=b", "photos/x=1", "1=2", "", "--a=1"])
def test_words_that_are_no_settings(word: str) -> None:
    assert split_setting(word) == (None, word)


def test_completion_knows_recipes_files_and_settings(here: Path) -> None:
    assert set(complete_words("coco-c")) == {"coco-caption", "coco-caption-literal"}
    assert complete_words("train.learn") == ["train.learning_rate="]
    assert complete_words("per_device_t") == ["per_device_train_batch_size="]
    assert complete_words("capt") == ["captions.csv"]
    assert complete_words("photos/") == ["photos/a.jpg"]
    assert "photos/" in complete_words("")
    assert complete_recipes("m") == ["mine.yaml"]
    assert complete_recipes("lat") == ["latex-ocr"]
    assert complete_words("zzz") == []


def test_a_json_of_settings_is_a_recipe_only_if_most_keys_are_settings(here: Path) -> None:
    (here / "args.json").write_text(json.dumps({"model": 1, "a": 1, "b": 1, "c": 1}))
    assert parse_words(["args.json"]).data == "args.json"
    (here / "args.json").write_text("{broken")
    assert parse_words(["args.json"]).data == "args.json"  # whose reader says what is wrong


def test_blanks_around_the_equals_sign_are_refused() -> None:
    with pytest.raises(UsageError, match="blanks around = · epochs = 3 · write epochs=3"):
        rewrite(["a.csv", "epochs", "=", "3"], {}, ["words"], "train")
